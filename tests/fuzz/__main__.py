"""Fuzz one target with one engine for some seconds: ``python3 -m tests.fuzz atheris dispatch 600``.

Atheris is guided by the coverage of our code, Hypothesis by its own search. A finding ends the run with a status that
is not 0 and is printed; otherwise the last line says how many inputs were tried. Needs no root.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

LONGEST: Final = 1100
"""Bytes of an input: more than a frame may have."""
FEWEST: Final = 100
"""Inputs that Hypothesis tries in any case: a busy machine has no time for one in a second."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Fuzz one target with one engine.")
    parser.add_argument("engine", choices=["atheris", "hypothesis"])
    parser.add_argument("target", choices=["decoder", "names", "dispatch"])
    parser.add_argument("seconds", type=int)
    options = parser.parse_args()
    {"atheris": with_atheris, "hypothesis": with_hypothesis}[options.engine](options.target, options.seconds)


def with_atheris(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process, and prints ``Done N runs``."""
    import atheris

    with atheris.instrument_imports(include=["protocol", "root_helper", "tests.fuzz.targets"]):
        from tests.fuzz import targets
    target = targets.TARGETS[name]()
    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(targets.seeds()):
            (corpus / str(number)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-rss_limit_mb=1024", "-timeout=10"]
        atheris.Setup(["fuzz", *limits, f"-artifact_prefix={place}/", str(corpus)], _shown(target))
        atheris.Fuzz()


def _shown(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            print(f"finding: {data!r}", file=sys.stderr, flush=True)
            raise

    return run


def with_hypothesis(name: str, seconds: int) -> None:
    """Draw examples until the time is over."""
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import strategies as st

    from tests.fuzz import targets

    target, tried, deadline = targets.TARGETS[name](), 0, time.monotonic() + seconds
    seed = st.sampled_from(list(targets.seeds()))
    edited = st.builds(_edited, seed, st.integers(0, LONGEST), st.binary(max_size=8), st.integers(0, 8))
    text = st.builds(
        lambda head, words: head + words.encode("utf-8", "surrogatepass"), st.binary(max_size=2), st.text()
    )

    @settings(
        max_examples=400,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(st.binary(max_size=LONGEST) | edited | text)
    def one_round(data: bytes) -> None:
        nonlocal tried
        if time.monotonic() < deadline or tried < FEWEST:
            tried += 1
            target(data)

    while time.monotonic() < deadline or tried < FEWEST:
        one_round()
    print(f"Done {tried} runs", file=sys.stderr)


def _text(head: bytes, words: str) -> bytes:
    return head + words.encode("utf-8", "surrogatepass")


def _edited(seed: bytes, place: int, put: bytes, over: int) -> bytes:
    """Give the seed with some bytes replaced at a place."""
    place %= len(seed) + 1
    return seed[:place] + put + seed[place + over :]


if __name__ == "__main__":
    main()
