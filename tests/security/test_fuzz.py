"""Any bytes of a stranger: the decoder, the name grammar and the dispatch, each fuzzed for a moment at each run.

``python3 -m tests.fuzz`` does it for as long as one likes; it is done for ten minutes each before a release.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SECONDS = "1"


@pytest.mark.parametrize("target", ["decoder", "names", "dispatch"])
@pytest.mark.parametrize("engine", ["atheris", "hypothesis"])
def test_no_input_does_what_must_never_happen(engine: str, target: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz", engine, target, SECONDS]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert runs is not None, done.stderr[-4000:]
    assert int(runs[1]) > 20, "it ran; how many in a second is the machine's affair"
