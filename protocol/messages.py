"""The whole vocabulary: four requests, their replies, one notice, and the closed lists of reasons.

A request names an intent and at most a user; never a uid, a path, a command, an environment or a limit. Those are
the helper's own. A value of these types that came out of ``codec`` has been checked; ``user`` of a request has not:
it is text, and the helper decides what it is.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, NewType

from protocol.settings import limited, matching

VERSION: Final = 1
MAX_REQUEST: Final = 1024
"""Bytes of a request at most; libzmq's MAXMSGSIZE drops what is longer before it is read."""
MAX_REPLY: Final = 4096
"""Bytes of a reply or notice at most."""

RequestId = NewType("RequestId", str)
"""The listener's own name for a request: 1 to 64 of ``[A-Za-z0-9-]``."""

Id = Annotated[RequestId, matching(r"[A-Za-z0-9-]{1,64}")]
Uid = Annotated[int, limited(0, 2**32 - 1)]
Pid = Annotated[int, limited(1, 2**22)]  # PID_MAX_LIMIT of 64-bit kernels, proc(5)
Seconds = Annotated[float, limited(0, 2**40)]
Cgroup = Annotated[int | None, limited(1, 2**64 - 1)]


class Op(StrEnum):
    """What may be asked."""

    ENSURE = "ensure"
    LIST = "list"
    STOP = "stop"
    DRAIN = "drain"


class RefusedReason(StrEnum):
    """Why a user may have no executor: permanent, the user's jobs are parked."""

    INVALID_NAME = "invalid_name"
    UNKNOWN_USER = "unknown_user"
    DENIED_USER = "denied_user"
    UID_OUT_OF_RANGE = "uid_out_of_range"
    NOT_IN_GROUP = "not_in_group"
    ACCOUNT_EXPIRED = "account_expired"
    HOME_CONFLICT = "home_conflict"
    WORKSPACE_CONFLICT = "workspace_conflict"


class FailedReason(StrEnum):
    """Why a user has no executor now: transient, the user's jobs are held and it is asked again."""

    LOOKUP_TIMEOUT = "lookup_timeout"
    AT_CAPACITY = "at_capacity"
    DRAINING = "draining"
    RATE_LIMITED = "rate_limited"
    BACKING_OFF = "backing_off"
    PREPARE_FAILED = "prepare_failed"
    SPAWN_FAILED = "spawn_failed"
    SCOPE_UNAVAILABLE = "scope_unavailable"
    UID_IN_USE = "uid_in_use"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    UNSUPPORTED_VERSION = "unsupported_version"


@dataclass(frozen=True, slots=True)
class _WithId:
    id: Id


@dataclass(frozen=True, slots=True)
class _AnExecutor(_WithId):
    """``since`` in Unix seconds; ``cgroup`` is None where there is no scope."""

    os_user: str
    uid: Uid
    pid: Pid
    since: Seconds
    cgroup: Cgroup


@dataclass(frozen=True, slots=True)
class EnsureExecutor(_WithId):
    """See to it that the user has an executor."""

    user: str


@dataclass(frozen=True, slots=True)
class ListExecutors(_WithId):
    """A page of the running executors: those of the users after ``after`` ("" = from the first)."""

    after: str


@dataclass(frozen=True, slots=True)
class StopExecutor(_WithId):
    """End the executor of this KNIME user."""

    user: str


@dataclass(frozen=True, slots=True)
class SetDraining(_WithId):
    """Start no executor any more (``on``), or start them again."""

    on: bool


@dataclass(frozen=True, slots=True)
class OtherVersion(_WithId):
    """A request of another version of this protocol: its id is all that is understood."""


Request = EnsureExecutor | ListExecutors | StopExecutor | SetDraining | OtherVersion


@dataclass(frozen=True, slots=True)
class Running(_AnExecutor):
    """The executor that was there already."""


@dataclass(frozen=True, slots=True)
class Started(_AnExecutor):
    """The executor that was started for this request."""


@dataclass(frozen=True, slots=True)
class Refused(_WithId):
    """Policy says no."""

    reason: RefusedReason


@dataclass(frozen=True, slots=True)
class Failed(_WithId):
    """The host says not now; ask again after ``retry_after`` seconds."""

    reason: FailedReason
    retry_after: Seconds


@dataclass(frozen=True, slots=True)
class ExecutorEntry:
    """One running executor in a page of ``Executors``."""

    user: str
    os_user: str
    uid: Uid
    pid: Pid
    since: Seconds
    cgroup: Cgroup


@dataclass(frozen=True, slots=True)
class Executors(_WithId):
    """A page, sorted by user. ``next`` is what to ask ``after`` next, None on the last page."""

    executors: tuple[ExecutorEntry, ...]
    next: str | None
    draining: bool
    free: Annotated[int, limited(0, 2**31)]


@dataclass(frozen=True, slots=True)
class Stopping(_WithId):
    """The executor was told to end."""


@dataclass(frozen=True, slots=True)
class Absent(_WithId):
    """There was no executor to stop."""


@dataclass(frozen=True, slots=True)
class Draining(_WithId):
    """Whether the helper is draining now."""

    on: bool


Reply = Running | Started | Refused | Failed | Executors | Stopping | Absent | Draining


@dataclass(frozen=True, slots=True)
class Exited:
    """Notice: an executor ended. ``status`` as os.waitstatus_to_exitcode gives it, None where the kernel tells none."""

    user: str
    uid: Uid
    pid: Pid
    status: Annotated[int | None, limited(-255, 255)]
    seq: Annotated[int, limited(1, 2**63)]
