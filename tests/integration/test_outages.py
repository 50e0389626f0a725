"""What the helper needs is away for longer than a minute, and comes back: nobody's job is parked, and all run soon.

The helper counts a user's starts of a minute, and a look-up that failed is one: whoever is asked for too often is
refused in just the moment when all is well again. What it takes is counted in the audit log's own times.
"""

import json
import time
from collections import Counter

import pytest

from tests.lab.chaos import Ledger, install_light_executor, listener_status
from tests.lab.processes import wait_for
from tests.lab.site import Site

pytestmark = pytest.mark.nightly

AWAY = """

_decides = _who


def _who(os_user, config):
    if os.path.exists({flag!r}):
        raise {error}("the directory, or D-Bus, does not answer")
    return _decides(os_user, config)
"""


def results(site: Site) -> list[dict[str, object]]:
    records = map(json.loads, site.installation.audit_log.read_text(encoding="ascii").splitlines())
    return [record for record in records if record["event"] == "result"]


@pytest.mark.parametrize("error", ["Undecided", "scope.ScopeUnavailable"])
def test_after_an_outage_of_100_s_all_jobs_run_within_15_s_and_none_was_parked(site: Site, error: str) -> None:
    flag = site.installation.root / "away"
    worker = site.installation.root / "lib/root_helper/worker.py"
    away = AWAY.format(flag=str(flag), error=error)
    worker.write_text(worker.read_text(encoding="utf-8") + away, encoding="utf-8")
    install_light_executor(site.installation)
    flag.touch()
    site.start()
    users = [site.accounts.user(f"u{number}").name for number in range(20)]
    for user in users:
        for _ in range(3):
            site.server.publish(user)
    wait_for(lambda: listener_status(site)["held"]["jobs"] == 60, 20, "all jobs held")
    time.sleep(100)  # what is looked at is an outage of that length
    back = time.time()
    flag.unlink()
    wait_for(lambda: len(Ledger(site.installation.workspaces).update()) == 60, 60, "all jobs")
    answers = Counter((record["decision"], record["reason"]) for record in results(site))
    late = max(float(str(record["time"])) for record in results(site) if record["decision"] == "started") - back
    print(f"\n{error}: the last of 20 users was started {late:.1f} s after the end; answers: {dict(answers)}")
    assert site.server.depth("knime-jobs.parked") == 0
    assert late < 15
