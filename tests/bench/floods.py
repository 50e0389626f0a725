"""New users beside publishers who mean harm: four spellings of one account, 6,000 jobs of invented names.

How it could lie: a flood that is over before the real user comes proves nothing, so that the jobs which still wait are
counted when the last real user has started, and the bench says how many. The real users are new (no directory, no
executor), come one after the other, and each is timed from its publish to the arrival of its job behind the listener;
who has not started within the bound counts as the bound and is shown as "more than". The control is the same new user
without a flood. Executors that connect at once, local accounts.
"""

import json
import time
from typing import Final

from tests.bench.figures import Figure
from tests.bench.instruments import TO_SINK, Sink, install_executor_that_only_connects, publish
from tests.lab.processes import wait_for
from tests.lab.site import Site

INVENTED: Final = 6000
BOUND: Final = 65.0
"""Seconds that a new user is waited for beside invented names."""
OWN_BOUND: Final = 10.0
"""The same beside other spellings of the name."""


def four_spellings(site: Site, _runs: int) -> list[Figure]:
    """Executors for BOB, Bob, bOb and boB are there: bob's own first job, and another new user's."""
    sink = _started(site)
    user, other = site.accounts.user("bobby").name, site.accounts.user("other").name
    spellings = [user.upper(), user.title(), user.swapcase().title().swapcase(), user[:-1] + user[-1].upper()]
    if len({*spellings, user}) != 5:
        raise RuntimeError(f"no five spellings: {spellings}")
    for number, name in enumerate(spellings):
        publish(site, json.dumps({"user": name, "job": f"spelling {number}"}).encode())
    sink.wait(4, 20)
    sink.empty()
    own = _first_job(sink, user, OWN_BOUND)
    another = _first_job(sink, other, OWN_BOUND)
    what = "four other spellings have executors"
    return [
        Figure(f"{what}: the account's own first job", "s", (own,), goal=2.0, bound=OWN_BOUND),
        Figure(f"{what}: another new user's first job", "s", (another,), bound=OWN_BOUND),
    ]


def invented_names(site: Site, runs: int) -> list[Figure]:
    """6,000 jobs of invented names wait: new users' first jobs, one after the other, before and meanwhile."""
    sink = _started(site)
    users = [site.accounts.user(f"new{number}").name for number in range(6)]
    before = tuple(_first_job(sink, user, BOUND) for user in users[:3])
    for number in range(INVENTED):
        publish(site, json.dumps({"user": f"nobody{number}", "job": f"invented {number}"}).encode())
    wait_for(lambda: site.server.depth() == 0, 30, "the flood in the listener's hands")
    meanwhile = list[float]()
    for user in users[3 : 3 + min(runs, 3)]:
        meanwhile.append(_first_job(sink, user, BOUND))
        if meanwhile[-1] >= BOUND:
            break
    left = INVENTED - site.server.depth("knime-jobs.parked")
    what = f"{INVENTED:,} jobs of invented names wait"
    return [
        Figure("a new user's first job, no flood", "s", before),
        Figure(f"{what}: a new user's first job", "s", tuple(meanwhile), goal=2.0, bound=BOUND),
        Figure(f"{what}: of these at the end", "count", (float(left),), "higher"),
    ]


def _started(site: Site) -> Sink:
    install_executor_that_only_connects(site)
    site.start(listener=TO_SINK)
    return Sink(site)


def _first_job(sink: Sink, user: str, bound: float) -> float:
    """Return the seconds until a user's job has arrived behind the listener, at most the bound."""
    began = time.monotonic()
    try:
        sink.latencies(user, 1, bound)
    except TimeoutError:
        return bound
    return min(time.monotonic() - began, bound)
