"""Whose workspace is whose: the predecessor named it by the OS user and lower-cased every KNIME name.

Here the KNIME name is kept as it is, and only one of several names of an account can have the old workspace. Pure:
names and the directories that exist go in.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from broker_listener.operator.output import escaped
from protocol.names import parse_user_name


@dataclass(frozen=True, slots=True)
class Names:
    """``[users.map]``, ``[workspace.names]``, and what could not be decided or taken over."""

    mapping: Mapping[str, str]
    workspaces: Mapping[str, str]
    notes: tuple[str, ...]
    incomplete: bool
    """Whether something of the old mapping could not be taken over."""


def decide(old: Mapping[str, str], knime_names: Iterable[str], workspaces: Collection[str]) -> Names:
    """Decide from the predecessor's mapping, KNIME's user names as far as they are known, and the old workspaces."""
    notes: list[str] = []
    mapping = {name: account for name, account in old.items() if _usable(name, account, notes)}
    incomplete = len(mapping) < len(old)
    known = dict.fromkeys(name for name in knime_names if parse_user_name(name, qualified=True))
    for name in known:
        if name not in mapping and name.lower() in mapping:  # the predecessor looked the lower-cased name up
            mapping[name] = mapping[name.lower()]
    claims: dict[str, list[str]] = {}
    for name in known or mapping:
        claims.setdefault(mapping.get(name, name.lower()), []).append(name)
    owners: dict[str, str] = {}
    for account, names in sorted(claims.items()):
        if account in workspaces and account not in names:
            owner, note = _owner(account, names, everybody_is_known=bool(known))
            owners |= {account: owner} if owner else {}
            notes += [note] if note else []
    if not known:
        notes.append(
            "KNIME's user names were not given (--user-names): a user whom KNIME calls Bob gets a new workspace"
            ' bob+Bob beside the old one, unless [workspace.names] has bob = "Bob"'
        )
    return Names(mapping, owners, tuple(notes), incomplete)


def _owner(account: str, names: list[str], *, everybody_is_known: bool) -> tuple[str | None, str | None]:
    if not everybody_is_known:
        note = f"the workspace {account} was {', '.join(names)}'s, and perhaps {account}'s own, and stays {account}'s"
        return None, f'{note}; else: [workspace.names] {account} = "{names[0]}"'
    if len(names) > 1:
        return names[0], f"the workspace {account} was shared by {', '.join(names)}; it is {names[0]}'s now"
    return names[0], None


def _usable(name: str, account: str, notes: list[str]) -> bool:
    if parse_user_name(name, qualified=True) and parse_user_name(account, qualified=True):
        if name != name.lower():
            notes.append(f"{name}: the predecessor never found it in the mapping, since it looked {name.lower()} up")
        return True
    notes.append(f"{escaped(name, 80)} -> {escaped(account, 80)} is left out: names have letters, digits, . _ - alone")
    return False
