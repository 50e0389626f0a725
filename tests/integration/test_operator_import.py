"""Moving over: the predecessor's configuration is imported and the real daemons do with it what is promised.

The broker stands behind TLS with an authority of its own, then without; workspaces were made by the predecessor's
rules.
"""

import json
import os
import shutil
import subprocess
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

from tests.lab.accounts import LISTENER, OsUser, end_processes
from tests.lab.site import Site
from tests.lab.tls_front import tls_before


def old_workspace(parent: Path, user: OsUser) -> Path:
    """Make what the predecessor made: mkdir, chown -R user:root, chmod -R 700, and a directory beside it, likewise."""
    for workspace in (parent / user.name, parent / f"{user.name}_temp"):
        workspace.mkdir()
        (workspace / "kept.txt").write_text("the user's own")
        for path in (workspace, workspace / "kept.txt"):
            os.chown(path, user.uid, 0)
            path.chmod(0o700)
    return parent / user.name


def documented(site: Site, parent: Path, **changes: Any) -> dict[str, Any]:
    """Give every key of the predecessor's manual, with its own defaults where it has one."""
    account = site.broker.server
    return {
        "log_file": "/var/log/starter.log",
        "log_level": "INFO",
        "log_rotation_when": "d",
        "log_rotation_interval": 1,
        "log_rotation_keep": 90,
        "ca_cert_file": "",
        "rabbitmq_host_name": "127.0.0.1",
        "rabbitmq_virtual_host": site.vhost,
        "rabbitmq_client_user": account.name,
        "rabbitmq_client_password": account.password,
        "rabbitmq_port": site.broker.port,
        "rabbitmq_protocol": "amqp",
        "rabbitmq_queue_name": "knime-jobs",
        "rabbitmq_exchange": "knime-server2executorknime-jobs",
        "rabbitmq_routing_key": "new-work",
        "knime_home": str(site.installation.knime_home),
        "knime_workspace_parent_folder": str(parent),
        "max_attempts_executor_start": 10,
        "seconds_sleep_executor_start": 3,
        "seconds_sleep_executor_existing": 0.5,
        "local_knime_user_os_user_mapping": {},
    } | changes


def imported(site: Site, configuration: dict[str, Any], names: list[str]) -> tuple[Path, list[str]]:
    """Run the command on a file where its manual puts it; give what was written, and the commands that it printed."""
    root = site.installation.root
    old = site.installation.knime_home / "knime_executor_per_user_starter.config"
    old.write_text(json.dumps(configuration))
    (root / "names").write_text("\n".join(names))
    words = ["import-config", "--json", "--force", "--output", str(root / "new"), "--user-names", str(root / "names")]
    command = site.installation.operator(*words, str(old))
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.defpath}, cwd="/")
    assert run.returncode == 0, run.stderr
    assert site.broker.server.password not in run.stdout
    return root / "new", [line for line, _ in json.loads(run.stdout)["commands"]]


def as_told(commands: list[str]) -> None:
    """Run what was printed, but for what needs systemd: here are no units."""
    for line in commands:
        if not line.startswith("systemctl disable --now knime-executor"):
            subprocess.run(["/bin/sh", "-ec", line], check=True)


def adopt(site: Site, new: Path, environment: dict[str, str]) -> None:
    """Give the site the imported files; only where its sockets and logs are is the lab's."""
    helper = tomllib.loads((new / "helper.toml").read_text())
    helper["executor"]["environment"] = environment
    site.installation.write_helper_toml(**helper)
    site.installation.write_listener_toml(**tomllib.loads((new / "listener.toml").read_text()))
    for daemon, name in (("listener", "broker-password"), ("helper", "executor-msgq")):
        file = site.installation.credentials(daemon) / name
        file.unlink()
        shutil.copyfile(new / name, file)
        file.chmod(0o400)
    shutil.chown(site.installation.credentials("listener") / "broker-password", LISTENER, LISTENER)


def jobs_of(site: Site, *users: str) -> dict[str, Any]:
    """Start both daemons, publish a job for each user, end everything; give the executors' reports by user."""
    site.helper.start()
    site.listener.start()
    for user in users:
        site.server.publish(user, report="full")
    reports = {report["user"]: report for report in site.server.results(len(users), seconds=30)}
    site.listener.stop()
    site.helper.stop()
    return reports


def test_users_of_the_predecessor_go_on_in_their_workspaces_with_what_was_imported(site: Site) -> None:
    """Over TLS on two hosts, then on one without it: a name that was lower-cased, one that was mapped, a plain one."""
    bob, service, carol = (site.accounts.user(name) for name in ("bob", "service", "carol"))
    owners = {bob.name.capitalize(): bob, "knimeadmin": service, carol.name: carol}
    parent = site.installation.root / "old-workspaces"
    parent.mkdir()
    parent.chmod(0o777)
    workspaces = {name: old_workspace(parent, user) for name, user in owners.items()}
    mapping = {"local_knime_user_os_user_mapping": {"knimeadmin": service.name}}
    runs = []
    with tls_before(site.broker.port, site.installation.etc) as (port, ca_file):
        tls = {"rabbitmq_protocol": "amqps", "rabbitmq_port": port, "ca_cert_file": str(ca_file)}
        tls |= {"rabbitmq_host_name": ["127.0.0.2", "127.0.0.1"]}  # nobody listens at the first
        new, commands = imported(site, documented(site, parent, **mapping, **tls), list(owners))
        as_told(commands)
        adopt(site, new, {"SSL_CERT_FILE": str(ca_file)})  # executors use the trust of their language
        runs.append(jobs_of(site, *owners))
        end_processes([user.uid for user in owners.values()])
    new, commands = imported(site, documented(site, parent, **mapping), list(owners))
    as_told(commands)
    adopt(site, new, {})
    runs.append(jobs_of(site, *owners))
    site.accounts.remove()
    for (name, user), reports in product(owners.items(), runs):
        assert reports[name]["uid"] == user.uid
        assert reports[name]["cwd"] == str(workspaces[name])
        assert reports[name]["environment"]["KNIME_EXECUTOR_RESERVATION"] == f"(user = '{name}')"
        assert reports[name]["environment"]["KNIME_EXECUTOR_TEMP_DIR"] == f"{parent}-temp/{user.name}"
        assert (workspaces[name] / "kept.txt").read_text() == "the user's own"
        assert workspaces[name].stat().st_uid == user.uid
    assert sorted(entry.name for entry in parent.iterdir()) == sorted(user.name for user in owners.values())
    assert parent.stat().st_mode & 0o777 == 0o755
