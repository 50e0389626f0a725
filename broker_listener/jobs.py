"""A message's body to the job that it is, or to the reason why it is none.

The body is any bytes that somebody could publish: nothing of it is trusted, and no bytes make this raise. Of a job
only the user is read; that name is checked against the grammar alone, whether such a user may have an executor is the
root helper's to say. The bytes decide, not the content_encoding that the message claims: a body that is UTF-8 JSON is
a job whatever its publisher called it, and a compressed one is not UTF-8.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from protocol.names import UserName, parse_user_name


class NoJobReason(StrEnum):
    """Why a body is parked unread: the value of ``x-peruser-reason``."""

    NOT_JSON = "not_json"
    NO_USER = "no_user"
    BAD_USER = "bad_user"
    TOO_LARGE = "too_large"
    BAD_ENCODING = "bad_encoding"
    TOO_DEEP = "too_deep"
    INVALID_NAME = "invalid_name"


@dataclass(frozen=True, slots=True)
class Job:
    """A job of this user, whose name is in the grammar, plain or qualified."""

    user: UserName


@dataclass(frozen=True, slots=True)
class NotAJob:
    """A body that no executor could ever take. ``detail`` is short ASCII for whoever looks at the parked message."""

    reason: NoJobReason
    detail: str


def read_job(body: bytes, max_body: int) -> Job | NotAJob:
    """Give the body's job, or why it is none."""
    if len(body) > max_body:
        return NotAJob(NoJobReason.TOO_LARGE, f"{len(body)} bytes, max_body is {max_body}")
    try:
        text = body.decode("utf-8")
        if body.count(b'"user"') == 1 and b"\\u00" not in body:
            return _only_user(_DECODER.decode(text))
        return _one_of_users(_PAIRS_DECODER.decode(text))
    except UnicodeDecodeError as error:
        return NotAJob(NoJobReason.BAD_ENCODING, f"byte {error.start} is not UTF-8")
    except json.JSONDecodeError as error:
        return NotAJob(NoJobReason.NOT_JSON, f"{error.msg} at character {error.pos}"[:_MAX_DETAIL])
    except RecursionError:
        return NotAJob(NoJobReason.TOO_DEEP, "nested deeper than the parser goes")


def _only_user(value: object) -> Job | NotAJob:
    if isinstance(value, dict) and "user" in value:
        return _of_user(value["user"])
    return _NO_USER


def _one_of_users(value: object) -> Job | NotAJob:
    """Look at every key: the plain decoder keeps the last of two equal ones, another parser may keep the first."""
    if not isinstance(value, tuple):  # an array is a list, an object came as a tuple of its pairs
        return _NO_USER
    users = [entry for key, entry in value if key == "user"]
    if len(users) > 1:
        return NotAJob(NoJobReason.BAD_USER, "user is given more than once")
    return _of_user(users[0]) if users else _NO_USER


def _of_user(user: object) -> Job | NotAJob:
    if not isinstance(user, str):
        return NotAJob(NoJobReason.BAD_USER, "user is not a string")
    if len(user) > _MAX_NAME:
        return NotAJob(NoJobReason.INVALID_NAME, f"user has {len(user)} characters, at most {_MAX_NAME} make a name")
    return _of_name(user)


@lru_cache(maxsize=4096)
def _of_name(name: str) -> Job | NotAJob:
    user = parse_user_name(name, qualified=True)
    if user is None:
        return NotAJob(NoJobReason.INVALID_NAME, f"user {name!a} is not in the grammar"[:_MAX_DETAIL])
    return Job(user)


_MAX_DETAIL: Final = 200
_MAX_NAME: Final = 97  # 32, "@" and 64, protocol.names
_NO_USER: Final = NotAJob(NoJobReason.NO_USER, "not a JSON object with the key user")
# As float, since int() of more than 4,300 digits raises (CPython's int_max_str_digits) and is quadratic below that.
# Made once: json.loads() with any argument builds a decoder a call.
_DECODER: Final = json.JSONDecoder(parse_int=float)
_PAIRS_DECODER: Final = json.JSONDecoder(parse_int=float, object_pairs_hook=tuple)
