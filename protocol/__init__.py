"""The contract between the broker listener and the root helper.

Both sides import this package, so it is part of what runs as uid 0: it uses the standard library alone, does no
input or output, and trusts no byte it is given.
"""
