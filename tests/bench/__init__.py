"""Measurements against the numbers to reach; nothing here asserts a time."""
