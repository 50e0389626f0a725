"""The strict loader of both configurations: a table is exactly what the dataclass says, or every fault is named."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import settings as fuzzed
from hypothesis import strategies as st

from protocol.settings import SettingsError, one_of, settings, within


@dataclass(frozen=True, slots=True)
class Inner:
    size: int = within(10, 1, 20)
    words: tuple[str, ...] = ("a",)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    amount: int | str | None = None


@dataclass(frozen=True, slots=True)
class Outer:
    text: str = "x"
    flag: bool = False
    count: int = 3
    seconds: float = within(1.0, 0, 600)
    free: float = 2.0
    mode: str = one_of("first", "second")
    hosts: int | str = within("all", 1, 9)  # type: ignore[arg-type]  # a number in range, or a word
    inner: Inner = Inner()
    items: tuple[Item, ...] = ()


def loaded(toml: str) -> Outer:
    return settings(Outer, tomllib.loads(toml), "x.toml")


def faults_of(toml: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        loaded(toml)
    assert all(fault.isprintable() for fault in error.value.faults)
    return error.value.faults


def test_an_absent_key_and_an_absent_table_have_their_defaults() -> None:
    assert loaded("") == Outer()
    assert loaded("[inner]\nsize = 5").inner == Inner(size=5)


def test_every_type_is_taken_as_it_is_declared() -> None:
    toml = """
        text = "y"
        flag = true
        count = -4
        seconds = 2
        mode = "second"
        hosts = 9
        [inner]
        words = []
        names = { a = "b" }
        [[items]]
        name = "n"
        amount = "5G"
        [[items]]
        name = "m"
    """
    assert loaded(toml) == Outer(
        text="y",
        flag=True,
        count=-4,
        seconds=2.0,
        mode="second",
        hosts=9,
        inner=Inner(words=(), names={"a": "b"}),
        items=(Item("n", "5G"), Item("m")),
    )
    assert isinstance(loaded("seconds = 2").seconds, float)


ANY_NUMBER = f"a number from {-(2**63)} to {2**63 - 1} is expected"
FAULTS = {
    "a = 1": "x.toml: a: unknown key",
    '"a\\nb" = 1': r"x.toml: 'a\nb': unknown key",
    "[inner]\nsise = 1": "x.toml: inner.sise: unknown key",
    "inner = 1": "x.toml: inner: a table is expected",
    "inner = []": "x.toml: inner: a table is expected",
    "text = 1": "x.toml: text: a string is expected",
    "text = 2026-01-01": "x.toml: text: a string is expected",
    "text = ['x']": "x.toml: text: a string is expected",
    "flag = 1": "x.toml: flag: true or false is expected",
    'flag = "true"': "x.toml: flag: true or false is expected",
    "count = true": "x.toml: count: an integer is expected",
    "count = 1.0": "x.toml: count: an integer is expected",
    "seconds = true": "x.toml: seconds: a number is expected",
    'seconds = "1"': "x.toml: seconds: a number is expected",
    "seconds = nan": "x.toml: seconds: a number from 0 to 600 is expected",
    "seconds = inf": "x.toml: seconds: a number from 0 to 600 is expected",
    "free = nan": f"x.toml: free: {ANY_NUMBER}",
    "free = -inf": f"x.toml: free: {ANY_NUMBER}",
    f"free = 1{'0' * 400}": f"x.toml: free: {ANY_NUMBER}",
    f"count = 1{'0' * 30}": f"x.toml: count: {ANY_NUMBER}",
    "seconds = -0.1": "x.toml: seconds: a number from 0 to 600 is expected",
    "seconds = 601": "x.toml: seconds: a number from 0 to 600 is expected",
    "inner.size = 0": "x.toml: inner.size: a number from 1 to 20 is expected",
    "inner.size = 21": "x.toml: inner.size: a number from 1 to 20 is expected",
    'mode = "third"': "x.toml: mode: one of 'first', 'second' is expected",
    "mode = []": "x.toml: mode: a string is expected",
    "hosts = 10": "x.toml: hosts: a number from 1 to 9 is expected",
    "hosts = true": "x.toml: hosts: an integer or a string is expected",
    'inner.words = "a"': "x.toml: inner.words: a list of strings is expected",
    "inner.words = ['a', 1]": "x.toml: inner.words: a list of strings is expected",
    "inner.names = ['a']": "x.toml: inner.names: a table of strings is expected",
    "inner.names = { a = 1 }": "x.toml: inner.names: a table of strings is expected",
    "[[items]]": "x.toml: items[0].name: must be given",
    "[[items]]\nname = 'n'\nx = 1": "x.toml: items[0].x: unknown key",
    "items = 1": "x.toml: items[0]: a table is expected",
    "items = [1]": "x.toml: items[0]: a table is expected",
}


@pytest.mark.parametrize(("toml", "fault"), FAULTS.items(), ids=range(len(FAULTS)))
def test_a_fault_names_file_key_and_what_was_expected(toml: str, fault: str) -> None:
    assert faults_of(toml) == [fault]


def test_all_faults_are_found_in_one_go() -> None:
    assert len(faults_of("a = 1\ntext = 2\ncount = true\n[inner]\nsize = 0\nb = 1\n[[items]]\n[[items]]\n")) == 7


VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@fuzzed(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(Outer.__slots__) | st.text(max_size=3), VALUES))
def test_any_table_is_taken_or_its_faults_are_one_line_each(table: dict[str, object]) -> None:
    value: Outer | None = None
    faults: list[str] = []
    try:
        value = settings(Outer, table, "x.toml")
    except SettingsError as error:
        faults = error.faults
    assert bool(faults) != isinstance(value, Outer)
    assert all(fault.startswith("x.toml: ") and fault.isprintable() for fault in faults)
    assert value is None or 0 <= value.seconds <= 600
