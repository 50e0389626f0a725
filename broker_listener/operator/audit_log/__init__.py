"""The audit log as its readers see it: its files in order, its chain, its anchors, its records."""
