"""Say where the listener's time goes while 100,000 jobs go through it: python3 -m tests.bench.profile_listener.

The profiler makes calls dearer than they are: the shares are a direction, not a measurement.
"""

import pstats
from collections import Counter

from tests.bench.instruments import TO_SINK, Sink, install_executor_that_only_connects, publish_jobs
from tests.lab.accounts import run_prefix
from tests.lab.broker_node import BrokerNode
from tests.lab.site import LAB, Site

JOBS = 100_000
LAUNCHER = """\
#!{python} -I
import cProfile, sys

sys.path.insert(0, {library!r})
from broker_listener.__main__ import main

profile = cProfile.Profile()
try:
    status = profile.runcall(main)
finally:
    profile.dump_stats({stats!r})
sys.exit(status)
"""


def main() -> None:
    """Run it and print two tables: time by package, and the dearest functions."""
    node = BrokerNode(LAB / f"{run_prefix()}profile")
    try:
        node.create()
        node.start()
        site = Site(node)
        try:
            site.create()
            _report(_profiled(site))
        finally:
            site.remove()
    finally:
        node.remove()


def _profiled(site: Site) -> pstats.Stats:
    installed = site.installation
    stats = installed.listener_run / "profile"
    launcher = installed.root / "bin/knime-broker-listener"
    launcher.write_text(LAUNCHER.format(python=installed.python, library=str(installed.root / "lib"), stats=str(stats)))
    install_executor_that_only_connects(site)
    users = [site.accounts.user(f"u{number}").name for number in range(10)]
    site.start(listener=TO_SINK)
    sink = Sink(site)
    for _ in range(10):
        publish_jobs(site, users, JOBS // 10)
        sink.wait(JOBS // 10)
        sink.empty()
    site.listener.stop()
    return pstats.Stats(str(stats))


def _report(stats: pstats.Stats) -> None:
    packages: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for (file, line, name), (_, _, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        packages[_package(file, name)] += own
        functions[f"{file.rpartition('/lib/')[2]}:{line} {name}"] += own
    waiting = packages.pop("waiting", 0.0)
    total = packages.total()
    print(f"{JOBS:,} jobs: {total:.1f} s of work under the profiler, {waiting:.1f} s of waiting")
    for package, own in packages.most_common(8):
        print(f"{own / total:6.1%}  {package}")
    for function, own in functions.most_common(26)[1:]:
        print(f"{own / total:6.1%}  {function}")


def _package(file: str, name: str) -> str:
    if "poll" in name and file == "~":
        return "waiting"
    if file == "~":
        return f"built in: {name}" if "send" in name or "recv" in name else "built in"
    return next(
        (package for package in ("pika", "asyncio", "broker_listener", "json", "zmq") if f"/{package}/" in file),
        "others",
    )


if __name__ == "__main__":
    main()
