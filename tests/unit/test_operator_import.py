"""The predecessor's configuration becomes ours: every key of its manual, and what cannot be taken over is said."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from broker_listener.config import load as load_listener
from broker_listener.config import parse_url
from broker_listener.operator.__main__ import main
from broker_listener.operator.configuration import load_helper_keys
from broker_listener.operator.predecessor import workspaces as old_workspaces
from broker_listener.operator.predecessor.configuration import Predecessor
from broker_listener.operator.predecessor.counterpart import msgq
from broker_listener.operator.predecessor.names import decide
from protocol.settings import settings
from root_helper.config import HelperConfig
from root_helper.config_file import _MSGQ
from root_helper.config_rules import rule_faults

pytestmark = [pytest.mark.needs("root"), pytest.mark.library]

SECRET = "a:b@c/d,e%f é"
DOCUMENTED = {  # as the file that it came with, every key in it
    "log_file": "/var/log/knime_executor_per_user_starter.log",
    "log_level": "INFO",
    "log_rotation_when": "d",
    "log_rotation_interval": 1,
    "log_rotation_keep": 45,
    "ca_cert_file": "",
    "rabbitmq_host_name": "broker.example.org",
    "rabbitmq_virtual_host": "/",
    "rabbitmq_client_user": "knime",
    "rabbitmq_client_password": SECRET,
    "rabbitmq_port": 5673,
    "rabbitmq_protocol": "amqp",
    "rabbitmq_queue_name": "knime-jobs",
    "rabbitmq_exchange": "knime-server2executorknime-jobs",
    "rabbitmq_routing_key": "new-work",
    "knime_home": "/srv/knime_4.2.2/",
    "knime_workspace_parent_folder": "/srv/workspaces/",
    "max_attempts_executor_start": 7,
    "seconds_sleep_executor_start": 4,
    "seconds_sleep_executor_existing": 0.5,
    "local_knime_user_os_user_mapping": {"knimeadmin": "alice"},
}


class Imported:
    """A run of the command in this process, and what it wrote."""

    def __init__(self, place: Path, changes: dict[str, Any], *options: str) -> None:
        self.directory = place / "etc"
        old = place / "old.config"
        old.write_text(json.dumps(DOCUMENTED | changes), "utf-8")
        self.status = main(["import-config", "--output", str(self.directory), *options, str(old)])

    def text(self, name: str) -> str:
        return (self.directory / name).read_text("utf-8")

    def toml(self, name: str) -> dict[str, Any]:
        return tomllib.loads(self.text(name))


def test_every_documented_key_arrives_or_is_named_with_the_reason(tmp_path: Path, capsys: Any) -> None:
    imported = Imported(tmp_path, {})
    printed = capsys.readouterr().out
    assert imported.status == 0
    listener = load_listener(imported.directory / "listener.toml")
    assert listener.broker.urls == ("amqp://knime@broker.example.org:5673/%2F",)
    assert (listener.broker.queue, listener.broker.routing_key) == ("knime-jobs", "new-work")
    assert listener.hand_over.max_start_attempts == 7
    helper = load_helper_keys(imported.directory / "helper.toml")
    assert (helper.executor.home, helper.executor.workspaces) == ("/srv/knime_4.2.2", "/srv/workspaces")
    assert helper.executor.temp == "/srv/workspaces-temp"
    assert imported.toml("helper.toml")["audit"]["keep_days"] == 45
    assert imported.toml("helper.toml")["users"]["map"] == {"knimeadmin": "alice"}
    assert imported.text("broker-password") == f"{SECRET}\n"
    for key in ("log_file", "log_level", "seconds_sleep_executor_existing", "seconds_sleep_executor_start"):
        assert f"  {key}: " in printed
    assert SECRET not in printed


def test_a_list_of_names_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Windows' editors write one; it is no part of the first name."""
    (tmp_path / "names").write_text("\ufeffBob\r\n", "utf-8")
    (tmp_path / "names-without").write_text("Bob\n", "utf-8")
    for place, names in (("one", "names"), ("two", "names-without")):
        (tmp_path / place / "workspaces/bob").mkdir(parents=True)
        folder = {"knime_workspace_parent_folder": str(tmp_path / place / "workspaces")}
        imported = Imported(tmp_path / place, folder, "--user-names", str(tmp_path / names))
        assert imported.toml("helper.toml")["workspace"]["names"] == {"bob": "Bob"}


def test_what_is_written_is_what_both_daemons_take(tmp_path: Path) -> None:
    imported = Imported(tmp_path, {"rabbitmq_host_name": ["b1", "b2"]})
    load_listener(imported.directory / "listener.toml")
    assert rule_faults(settings(HelperConfig, imported.toml("helper.toml"), "helper.toml")) == []
    assert _MSGQ.fullmatch(imported.text("executor-msgq").removesuffix("\n"))


def test_files_have_their_modes_from_the_first_moment_and_are_never_overwritten_unasked(tmp_path: Path) -> None:
    imported = Imported(tmp_path, {})
    modes = {path.name: path.stat().st_mode & 0o7777 for path in imported.directory.iterdir()}
    secret = dict.fromkeys(("broker-password", "executor-msgq"), 0o600)
    assert modes == {**dict.fromkeys(("listener.toml", "helper.toml"), 0o644), **secret}
    assert Imported(tmp_path, {"rabbitmq_port": 1}).status == 2
    assert "5673" in imported.text("listener.toml")
    assert Imported(tmp_path, {"rabbitmq_port": 1}, "--force").status == 0
    assert ":1/" in imported.text("listener.toml")
    assert "5673" in imported.text("listener.toml.before-import")
    assert (imported.directory / "executor-msgq.before-import").stat().st_mode & 0o7777 == 0o600


def test_a_dry_run_writes_nothing_and_shows_no_password(tmp_path: Path, capsys: Any) -> None:
    assert Imported(tmp_path, {}, "--dry-run").status == 0
    printed = capsys.readouterr().out
    assert "urls = " in printed
    assert "s3cret" not in printed
    assert SECRET not in printed
    assert not (tmp_path / "etc").exists()
    assert Imported(tmp_path, {}, "--dry-run", "--json").status == 0
    shown = json.loads(capsys.readouterr().out)
    assert [file["text"] for file in shown["files"] if file["secret"]] == [None, None]


def test_several_nodes_tls_and_odd_characters_give_urls_that_both_clients_read(tmp_path: Path) -> None:
    certificates = {"rabbitmq_protocol": "amqps", "rabbitmq_port": 5671, "ca_cert_file": ""}
    imported = Imported(
        tmp_path, {"rabbitmq_host_name": ["b1", "b2", "::1"], "rabbitmq_virtual_host": "a/b,c", **certificates}
    )
    urls = [parse_url(url) for url in load_listener(imported.directory / "listener.toml").broker.urls]
    assert [(url.host, url.port, url.tls, url.vhost) for url in urls] == [
        (host, 5671, True, "a/b,c") for host in ("b1", "b2", "::1")
    ]
    first, *others = imported.text("executor-msgq").strip().split(",")
    assert first == "amqps://knime:a%3Ab%40c%2Fd%2Ce%25f%20%C3%A9@b1:5671/a%2Fb%2Cc"
    assert others == ["amqps://b2:5671", "amqps://[::1]:5671"]


def test_an_empty_vhost_is_the_brokers_default() -> None:
    old = Predecessor(rabbitmq_host_name="b", rabbitmq_client_user="u", rabbitmq_client_password="p")
    assert msgq(old) == "amqp://u:p@b:5672/%2F"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rabbitmq_port": "5672"}, "rabbitmq_port"),
        ({"rabbitmq_protocol": "http"}, "rabbitmq_protocol"),
        ({"rabbitmq_host_name": ["b", 5]}, "rabbitmq_host_name"),
        ({"rabbitmq_host_name": ""}, "rabbitmq_host_name"),
        ({"knime_home": "relative"}, "knime_home"),
        ({"rabbitmq_queue_name": "half a character \ud800"}, "is not JSON in UTF-8"),
        ({"rabbitmq_client_password": "half a character \ud800"}, "is not JSON in UTF-8"),
        ({"local_knime_user_os_user_mapping": {"a": 1}}, "local_knime_user_os_user_mapping"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: Any, changes: dict[str, Any], named: str
) -> None:
    assert Imported(tmp_path, changes).status == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "etc").exists()


def test_a_key_that_the_predecessor_never_had_is_said_and_left_out(tmp_path: Path, capsys: Any) -> None:
    assert Imported(tmp_path, {"spare\x1b[2J": 1}).status == 0
    assert "is no key of the predecessor" in (printed := capsys.readouterr().out)
    assert "\x1b[2J" not in printed


def test_a_mapping_that_is_outside_the_grammar_is_left_out_and_the_exit_status_tells(
    tmp_path: Path, capsys: Any
) -> None:
    imported = Imported(tmp_path, {"local_knime_user_os_user_mapping": {"a' OR user = 'b": "alice", "carol": "dave"}})
    assert imported.status == 1
    assert imported.toml("helper.toml")["users"]["map"] == {"carol": "dave"}
    assert "is left out" in capsys.readouterr().out


def test_of_the_names_of_an_account_the_one_that_is_its_own_keeps_the_workspace() -> None:
    found = decide({}, ["Bob", "bob", "Carol", "dave", "EVE"], {"bob", "carol", "dave"})
    assert found.workspaces == {"carol": "Carol"}


def test_a_mapped_name_keeps_the_workspace_unless_the_account_has_it_itself() -> None:
    mapping = {"knimeadmin": "alice"}
    assert decide(mapping, ["knimeadmin", "bob"], {"alice"}).workspaces == {"alice": "knimeadmin"}
    assert decide(mapping, ["knimeadmin", "alice"], {"alice"}).workspaces == {}
    unknown = decide(mapping, [], {"alice"})
    assert unknown.workspaces == {}
    assert any('[workspace.names] alice = "knimeadmin"' in note for note in unknown.notes)


def test_a_name_that_the_predecessor_found_lower_cased_is_mapped_as_it_is_spelled() -> None:
    found = decide({"knimeadmin": "svc"}, ["KnimeAdmin"], {"svc"})
    assert found.mapping["KnimeAdmin"] == "svc"
    assert found.workspaces == {"svc": "KnimeAdmin"}


def test_two_spellings_without_the_accounts_own_share_no_workspace_and_it_is_said() -> None:
    found = decide({}, ["Bob", "BOB"], {"bob"})
    assert found.workspaces == {"bob": "Bob"}
    assert any("shared by Bob, BOB" in note for note in found.notes)


def test_what_the_old_directories_need_is_printed_quoted_and_not_done(tmp_path: Path, capsys: Any) -> None:
    parent = tmp_path / "work spaces"
    for name in ("daemon", "daemon_temp", "gone", "$(reboot)"):
        (parent / name).mkdir(parents=True)
    parent.chmod(0o777)
    Imported(tmp_path, {"knime_workspace_parent_folder": str(parent)})
    printed = capsys.readouterr().out
    assert f"chown root:root '{parent}' && chmod 0755 '{parent}'" in printed
    assert f"chown -R daemon '{parent}/daemon'" in printed
    assert f"rm -r '{parent}/daemon_temp'" in printed
    assert f"# '{parent}/$(reboot)'" in printed
    assert f"install -d -m 0755 -o root -g root '{parent}-temp'" in printed
    assert parent.stat().st_mode & 0o777 == 0o777


def test_every_copy_of_the_old_configuration_is_to_be_closed_since_it_holds_a_password(
    tmp_path: Path, capsys: Any
) -> None:
    home = tmp_path / "knime"
    home.mkdir()
    installed = home / "knime_executor_per_user_starter.config"
    Imported(tmp_path, {"knime_home": str(home)})
    printed = capsys.readouterr().out
    assert f"chmod 0600 {tmp_path}/old.config" in printed
    assert str(installed) not in printed
    installed.write_text("{}")
    Imported(tmp_path, {"knime_home": str(home)}, "--force")
    assert f"chmod 0600 {installed}\n" in capsys.readouterr().out


def test_units_that_are_not_there_are_not_to_be_ended(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_workspaces, "UNIT_DIRECTORIES", (str(tmp_path),))
    (tmp_path / "knime-executor-per-user.service").touch()
    Imported(tmp_path, {})
    printed = capsys.readouterr().out
    assert "systemctl disable --now knime-executor-per-user.service" in printed
    assert "systemctl disable --now knime-executor.service" not in printed


def test_a_directory_that_is_everybodys_like_tmp_is_not_to_be_closed(tmp_path: Path, capsys: Any) -> None:
    shared = tmp_path / "shared"
    (shared / "workspaces").mkdir(parents=True)
    shared.chmod(0o1777)
    Imported(tmp_path, {"knime_workspace_parent_folder": str(shared / "workspaces")})
    printed = capsys.readouterr().out
    assert f"  # {shared}: mode 1777" in printed
    assert f"chmod 0755 {shared}" not in printed
    assert "move what is below elsewhere" in printed
