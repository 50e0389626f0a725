"""Names of the queues beside the parked queue: all of them are ours, below ``knime-peruser.``."""

THOUSAND = 1000
"""Messages of ``taken`` that one of ``thousands`` stands for."""


def lock(parked: str) -> str:
    """Return the queue that only one connection has at a time, which may then take messages or count them."""
    return f"knime-peruser.{parked}.lock"


def marks(parked: str) -> str:
    """Return the queue with a mark of each message whose retry is not settled yet."""
    return f"knime-peruser.{parked}.marks"


def taken(parked: str) -> str:
    """Return the queue that holds one empty message for each that a command took off the parked queue."""
    return f"knime-peruser.{parked}.taken"


def thousands(parked: str) -> str:
    """Return the queue that holds one empty message for each thousand of them."""
    return f"knime-peruser.{parked}.taken.thousands"
