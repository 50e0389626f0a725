"""A table of TOML or JSON to a frozen dataclass, strictly: what configurations and messages are read with.

The dataclass is the schema: its fields are the keys, their types what is expected, their defaults what holds where
a key is absent. An unknown key, a wrong type or a value out of range is a fault that names file, key and what was
expected; all faults of a table are found in one go. It trusts nothing of the table.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
Rule = Mapping[str, Any]
_NUMBERS: Final = (-(2**63), 2**63 - 1)  # TOML's own range; NaN is in none


class SettingsError(Exception):
    """A table that cannot be used; ``faults`` has one line for each thing that is wrong."""

    def __init__(self, faults: list[str]) -> None:
        """Keep the faults, each one line."""
        super().__init__("\n".join(faults))
        self.faults = faults


def within(default: float, low: float, high: float) -> Any:
    """Give a number's field: its default and the range it must be in, both ends included."""
    return field(default=default, metadata={"within": (low, high)})


def one_of(default: str, *others: str) -> Any:
    """Give a text's field that has a closed list of values, the default first."""
    return field(default=default, metadata={"one_of": (default, *others)})


def limited(low: float, high: float) -> Rule:
    """Give the rule of an annotated number: the range it must be in, both ends included."""
    return {"within": (low, high)}


def matching(pattern: str) -> Rule:
    """Give the rule of an annotated text: what it must match as a whole."""
    return {"matching": re.compile(pattern, re.ASCII)}


def settings(schema: type[T], table: Mapping[str, object], file: str) -> T:
    """Give the table as the dataclass.

    Raises:
        SettingsError: with every fault of the table.
    """
    faults: list[str] = []
    value = _dataclass(schema, table, f"{file}: ", faults)
    if faults:
        raise SettingsError(faults)
    return cast("T", value)


def shown_key(key: str) -> str:
    """Give a key as it can stand in a fault, which is one line."""
    return key if key.isidentifier() and key.isascii() and len(key) <= 80 else ascii(key[:80])


def _dataclass(schema: Any, table: object, where: str, faults: list[str]) -> object:
    if not isinstance(table, Mapping):
        faults.append(f"{where.rstrip('.')}: a table is expected")
        return None
    known = _keys(schema)
    faults.extend(f"{where}{shown_key(key)}: unknown key" for key in table if key not in known)
    values: dict[str, object] = {}
    for name, (expected, rule, required) in known.items():
        if name in table:
            values[name] = _value(expected, rule, table[name], f"{where}{name}", faults)
        elif required:
            faults.append(f"{where}{name}: must be given")
    return None if faults else schema(**values)


@cache
def _keys(schema: Any) -> dict[str, tuple[Any, Rule, bool]]:
    """Give of each key what type is expected, by which rule, and whether it must be given."""
    hints = get_type_hints(schema, include_extras=True)
    keys: dict[str, tuple[Any, Rule, bool]] = {}
    for entry in fields(schema):
        expected, rule = hints[entry.name], dict(entry.metadata)
        if get_origin(expected) is Annotated:
            expected, annotated = get_args(expected)
            rule |= annotated
        required = entry.default is MISSING and entry.default_factory is MISSING
        keys[entry.name] = (getattr(expected, "__supertype__", expected), rule, required)  # a NewType is what it is of
    return keys


def _value(expected: Any, rule: Rule, value: object, where: str, faults: list[str]) -> object:
    if is_dataclass(expected):
        return _dataclass(cast("type[Any]", expected), value, f"{where}.", faults)
    if get_origin(expected) is tuple and is_dataclass(get_args(expected)[0]):
        entries = value if isinstance(value, list) else [None]
        item = cast("type[Any]", get_args(expected)[0])
        return tuple(_dataclass(item, entry, f"{where}[{n}].", faults) for n, entry in enumerate(entries))
    low, high = rule.get("within", _NUMBERS)
    if not _is_a(expected, value):
        faults.append(f"{where}: {_name(expected)} is expected")
    elif isinstance(value, int | float) and not low <= value <= high:
        faults.append(f"{where}: a number from {low} to {high} is expected")
    elif "one_of" in rule and value not in rule["one_of"]:
        faults.append(f"{where}: one of {', '.join(map(repr, rule['one_of']))} is expected")
    elif "matching" in rule and not rule["matching"].fullmatch(value):
        faults.append(f"{where}: a text that matches {rule['matching'].pattern} is expected")
    else:
        return _frozen(value, expected)
    return value


def _frozen(value: object, expected: Any) -> object:
    if _is_enumeration(expected):
        return expected(value)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        return MappingProxyType(value)
    return float(cast("float", value)) if expected is float else value


def _is_a(expected: Any, value: object) -> bool:
    if isinstance(expected, UnionType):
        return any(_is_a(member, value) for member in get_args(expected))
    if get_origin(expected) is tuple:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if get_origin(expected) is not None:  # Mapping[str, str], the one other generic type of our schemas
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if _is_enumeration(expected):
        return isinstance(value, str) and value in frozenset(expected)
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


def _name(expected: Any) -> str:
    if isinstance(expected, UnionType):
        return " or ".join(_name(member) for member in get_args(expected) if member is not type(None))
    if get_origin(expected) is tuple:
        return "a list of strings"
    if get_origin(expected) is not None:
        return "a table of strings"
    if _is_enumeration(expected):
        return f"one of {', '.join(expected)}"
    return {bool: "true or false", int: "an integer", float: "a number", str: "a string"}[expected]


def _is_enumeration(expected: Any) -> bool:
    return isinstance(expected, type) and issubclass(expected, StrEnum)
