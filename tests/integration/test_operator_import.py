"""Moving over: the predecessor's configuration is imported and the real daemons do with it what is promised.

The broker stands behind TLS with an authority of its own; the user's workspace was made by the predecessor's rules.
"""

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.lab.accounts import LISTENER, OsUser
from tests.lab.site import Site
from tests.lab.tls_front import tls_before

pytestmark = pytest.mark.one_end


def old_workspace(parent: Path, user: OsUser) -> Path:
    """Make what the predecessor made: mkdir, chown -R user:root, chmod -R 700, below a parent of mode 0777."""
    parent.mkdir()
    parent.chmod(0o777)
    workspace = parent / user.name
    workspace.mkdir()
    (workspace / "kept.txt").write_text("the user's own")
    for path in (workspace, workspace / "kept.txt"):
        os.chown(path, user.uid, 0)
        path.chmod(0o700)
    return workspace


def documented(site: Site, port: int, ca_file: Path, parent: Path) -> dict[str, Any]:
    account = site.broker.server
    return {
        "log_file": "/var/log/starter.log",
        "log_level": "INFO",
        "log_rotation_when": "d",
        "log_rotation_interval": 1,
        "log_rotation_keep": 90,
        "ca_cert_file": str(ca_file),
        "rabbitmq_host_name": ["localhost", "127.0.0.1"],
        "rabbitmq_virtual_host": site.vhost,
        "rabbitmq_client_user": account.name,
        "rabbitmq_client_password": account.password,
        "rabbitmq_port": port,
        "rabbitmq_protocol": "amqps",
        "rabbitmq_queue_name": "knime-jobs",
        "rabbitmq_exchange": "knime-server2executorknime-jobs",
        "rabbitmq_routing_key": "new-work",
        "knime_home": str(site.installation.knime_home),
        "knime_workspace_parent_folder": str(parent),
        "max_attempts_executor_start": 10,
        "seconds_sleep_executor_start": 3,
        "seconds_sleep_executor_existing": 0.5,
        "local_knime_user_os_user_mapping": {"knimeadmin": "daemon"},
    }


def imported(site: Site, configuration: dict[str, Any], names: list[str]) -> tuple[Path, list[str]]:
    """Run the command; give where the files are, and the commands that it printed."""
    root = site.installation.root
    (root / "old.config").write_text(json.dumps(configuration))
    (root / "names").write_text("\n".join(names))
    words = ["import-config", "--json", "--output", str(root / "new"), "--user-names", str(root / "names")]
    command = site.installation.operator(*words, str(root / "old.config"))
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.defpath}, cwd="/")
    assert run.returncode == 0, run.stderr
    assert site.broker.server.password not in run.stdout
    return root / "new", [line for line, _ in json.loads(run.stdout)["commands"]]


def adopt(site: Site, new: Path, ca_file: Path) -> None:
    """Give the site the imported files; only where its sockets and logs are is the lab's."""
    helper = tomllib.loads((new / "helper.toml").read_text())
    helper["executor"]["environment"] = {"SSL_CERT_FILE": str(ca_file)}  # executors use the trust of their language
    site.installation.write_helper_toml(**helper)
    site.installation.write_listener_toml(**tomllib.loads((new / "listener.toml").read_text()))
    for daemon, name in (("listener", "broker-password"), ("helper", "executor-msgq")):
        file = site.installation.credentials(daemon) / name
        file.unlink()
        shutil.copyfile(new / name, file)
        file.chmod(0o400)
    shutil.chown(site.installation.credentials("listener") / "broker-password", LISTENER, LISTENER)


def test_a_user_of_the_predecessor_goes_on_in_the_same_workspace_with_what_was_imported(site: Site) -> None:
    """KNIME spells the name otherwise than the OS, the predecessor did not: the workspace is the old one."""
    bob = site.accounts.user("bob")
    spelled = bob.name.capitalize()
    parent = site.installation.root / "old-workspaces"
    workspace = old_workspace(parent, bob)
    with tls_before(site.broker.port, site.installation.etc) as (port, ca_file):
        new, commands = imported(site, documented(site, port, ca_file, parent), [spelled, "carol"])
        for line in commands:
            if str(parent) in line:
                subprocess.run(["/bin/sh", "-ec", line], check=True)
        adopt(site, new, ca_file)
        site.helper.start()
        site.listener.start()
        site.server.publish(spelled, report="full")
        (report,) = site.server.results(1, seconds=30)
        site.listener.stop()
        site.helper.stop()
        site.accounts.remove()
    assert report["uid"] == bob.uid
    assert report["cwd"] == str(workspace)
    assert report["user"] == spelled
    assert (workspace / "kept.txt").read_text() == "the user's own"
    assert report["environment"]["KNIME_EXECUTOR_TEMP_DIR"] == f"{parent}-temp/{bob.name}"
    assert workspace.stat().st_uid == bob.uid
