"""The jobs of users whose names are unknown so far: they wait, since an account may be new, or its directory away.

They are bounded, so names without end hold no memory: beyond ``MAX_UNKNOWN_JOBS`` those that waited longest are parked.
"""

from typing import Final

from broker_listener.user import User

MAX_UNKNOWN_JOBS: Final = 1000


class Grace:
    """Counts the jobs; users stand in the order in which their names became unknown."""

    def __init__(self) -> None:
        self._users: dict[User, None] = {}
        self.jobs = 0

    def add(self, user: User, jobs: int = 1) -> None:
        """Count so many more jobs of the user."""
        if jobs:
            self._users.setdefault(user)
            user.grace_jobs += jobs
            self.jobs += jobs

    def leave(self, user: User, jobs: int) -> None:
        """Count so many of the user's jobs no longer; those that are not here do not matter."""
        leaving = min(jobs, user.grace_jobs)
        self.jobs -= leaving
        user.grace_jobs -= leaving
        if not user.grace_jobs:
            self._users.pop(user, None)

    def too_long(self) -> User | None:
        """Return the user whose oldest job is one too many here, None if there is room."""
        return next(iter(self._users)) if self.jobs > MAX_UNKNOWN_JOBS else None
