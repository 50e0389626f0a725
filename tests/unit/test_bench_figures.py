"""The benches' arithmetic: percentiles, spreads, steps, the relay's acks, and the file that holds the figures."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.asking import Told
from tests.bench.figures import Figure, Measured, NoReport, Report, from_json
from tests.bench.relay import Confirmed
from tests.bench.spread import Verdict, differ, percentile
from tests.bench.start_steps import EXECUTED, cut
from tests.bench.table import table

SAMPLES = st.lists(st.floats(0, 1e9), min_size=1, max_size=8)
FIGURES = st.builds(
    Figure,
    what=st.text(max_size=20),
    unit=st.sampled_from(["ms", "MB", "per s", "times"]),
    samples=SAMPLES.map(tuple),
    better=st.sampled_from(["lower", "higher"]),
    bare=st.booleans(),
    goal=st.none() | st.floats(0, 1e9),
    bound=st.none() | st.floats(0, 1e9),
)
MEASURED = st.builds(
    Measured,
    bench=st.text(max_size=9),
    load=st.floats(0, 99),
    seconds=st.floats(0, 999),
    figures=st.lists(FIGURES, max_size=3).map(tuple),
    without=st.none() | st.text(max_size=9),
    broke=st.booleans(),
)
REPORTS = st.builds(
    Report, st.dictionaries(st.text(), st.text(), max_size=3), st.lists(MEASURED, max_size=3).map(tuple)
)
FIGURE = Figure("a start", "ms", (1.0, 3.0, 2.0), goal=2.5)


def report(*figures: Figure) -> Report:
    return Report({"commit": "abc"}, (Measured("bench", 0.1, 1.0, figures),))


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0, 100))
def test_percentile_is_a_sample_by_nearest_rank(samples: list[float], percent: float) -> None:
    """At least so many percent of the samples are not above it, and fewer are below it."""
    found = percentile(samples, percent)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= len(samples) * percent / 100
    assert sum(sample < found for sample in samples) <= len(samples) * percent / 100


def test_percentile_of_few_samples_is_the_largest() -> None:
    """Nothing is interpolated: a 99th percentile of 60 jobs hides no outlier."""
    assert percentile([1.0] * 59 + [500.0], 99) == 500.0
    assert percentile([1.0] * 199 + [500.0], 99) == 1.0


@given(SAMPLES, SAMPLES)
def test_differ_has_a_verdict_only_where_ranges_are_apart(before: list[float], after: list[float]) -> None:
    """And the other way round it is the opposite one."""
    verdict = differ(before, after)
    apart = max(after) < min(before) or min(after) > max(before)
    assert (verdict is Verdict.SAME) == (not apart)
    opposite = {Verdict.LOWER: Verdict.HIGHER, Verdict.HIGHER: Verdict.LOWER}
    assert differ(after, before) is opposite.get(verdict, verdict)


def test_differ_wants_more_than_three_runs_a_side() -> None:
    """Three runs each are apart by chance once in ten times, five each once in 126."""
    assert differ([1, 2, 3], [4, 5, 6]) is Verdict.TOO_FEW
    assert differ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) is Verdict.HIGHER
    assert differ([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]) is Verdict.LOWER
    assert differ([1, 2, 3, 4, 5], [5, 6, 7, 8, 9]) is Verdict.SAME


@given(REPORTS)
def test_report_comes_back_from_its_file_unchanged(made: Report) -> None:
    """Every sample, bound and reason."""
    assert from_json(made.to_json()) == made


@given(REPORTS, st.data())
def test_report_that_was_cut_is_refused(made: Report, data: st.DataObject) -> None:
    """A file that was written half, or by something else, is never half believed."""
    text = made.to_json().rstrip()
    with pytest.raises(NoReport):
        from_json(text[: data.draw(st.integers(0, len(text) - 1))])


@pytest.mark.parametrize(
    "change",
    [
        {"samples": []},
        {"samples": ["x"]},
        {"samples": [float("nan")]},
        {"samples": None},
        {"unit": "furlongs"},
        {"better": "faster"},
        {"more": 1},
        {"goal": "low"},
    ],
)
def test_report_with_a_figure_of_another_form_is_refused(change: dict[str, object]) -> None:
    """Of another unit, without samples, with a key too many."""
    document = json.loads(report(FIGURE).to_json())
    document["benches"][0]["figures"][0].update(change)
    with pytest.raises(NoReport):
        from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 2}', '{"format": 1, "machine": {}}', "[" * 99999])
def test_report_of_another_kind_is_refused(text: str) -> None:
    """Whatever the file holds."""
    with pytest.raises(NoReport):
        from_json(text)


def test_figure_says_whether_it_reaches_its_goal() -> None:
    """In the direction that is better for it; one without a goal says nothing."""
    assert FIGURE.reaches_goal is True
    assert replace(FIGURE, goal=1.5).reaches_goal is False
    assert replace(FIGURE, better="higher").reaches_goal is False
    assert replace(FIGURE, goal=None).reaches_goal is None


def test_table_shows_what_was_cut_off_and_what_is_missing() -> None:
    """A median at the bound is "more than", and a bench that broke is listed below the table."""
    broke = Measured("floods", 0.1, 1.0, (), "it broke: TimeoutError")
    made = report(FIGURE, Figure("a flood", "s", (65.0,), goal=2.0, bound=65.0))
    text = table(Report(made.machine, (*made.benches, broke)))
    assert "| a start | 2.00 ms | 1.00 ms to 3.00 ms (3) | <= 2.50 ms |" in text
    assert "| a flood | > 65.0 s | one run | <= 2.00 s, missed |" in text
    assert text.endswith("not measured: floods: it broke: TimeoutError\n")


def test_steps_of_a_start_leave_nothing_out() -> None:
    """What passed from the request to the answer is the sum; steps of one name are added up."""
    told = Told("u1", asked=10.0, answered=10.010, result="started", reason=None)
    found = cut(told, [("fork", 10.001), ("directory", 10.003), ("scope", 10.004), ("directory", 10.006)])
    assert {step: round(ms, 6) for step, ms in found.items()} == {"fork": 1, "directory": 4, "scope": 1, EXECUTED: 4}
    assert sum(found.values()) == pytest.approx(told.ms)


@given(st.permutations(range(1, 13)), st.lists(st.booleans(), min_size=12, max_size=12))
def test_bare_relay_acks_nothing_before_its_confirm(order: list[int], multiple: list[bool]) -> None:
    """Confirms come in any order and by multiple; in the end all is acked."""
    relay, confirmed, acked = Confirmed(), set[int](), 0
    for tag in range(101, 113):
        relay.published(tag)
    for number, all_up_to in zip(order, multiple, strict=True):
        if number in confirmed:
            continue
        confirmed |= set(range(1, number + 1)) if all_up_to else {number}
        tag = relay.confirmed(number, multiple=all_up_to)
        acked = acked if tag is None else tag - 100
        assert set(range(1, acked + 1)) <= confirmed
    assert acked == 12
