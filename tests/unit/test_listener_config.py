"""listener.toml and the broker's password: what is wrong is named by file and key, all of it at once."""

import os
import shutil
import ssl
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from broker_listener import config as c
from protocol.settings import SettingsError

DOCUMENTED = """
[broker]
urls = ["amqp://knime@127.0.0.1:5672/%2F"]
password_file = ""
ca_file = ""
client_cert_file = ""
client_key_file = ""
queue = "knime-jobs"
exchange = "knime-server2executorknime-jobs"
routing_key = "new-work"
parked_queue = "knime-jobs.parked"
prefetch = 20000
max_unconfirmed = 1000
max_body = 262144
max_held_bytes = 67108864
max_parkable = 134217728
max_hold = 600.0
[hand_over]
mode = "republish"
ready = "broker-connection"
ready_addresses = []
ready_delay = 3.0
start_timeout = 45.0
retry_initial = 0.01
retry_max = 0.25
returns_per_second = 500
max_start_attempts = 10
unknown_grace = 60.0
[helper]
socket = "/run/knime-peruser/helper.sock"
timeout = 60.0
[cluster]
enabled = false
executors_per_user = "all"
host = ""
exchange = "knime-peruser.hosts"
heartbeat = 5.0
dead_after = 15.0
[metrics]
listen = "127.0.0.1:9469"
"""


def load(tmp_path: Path, text: str) -> c.ListenerConfig:
    path = tmp_path / "listener.toml"
    path.write_text(text)
    return c.load(path)


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    prefix = f"{tmp_path}/listener.toml: "
    assert all(fault.startswith(prefix) and "\n" not in fault for fault in caught.value.faults)
    return [fault.removeprefix(prefix) for fault in caught.value.faults]


def test_an_empty_file_gives_the_documented_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == load(tmp_path, DOCUMENTED) == c.ListenerConfig()


def test_every_key_is_documented() -> None:
    sections = c.ListenerConfig()
    for section in fields(sections):
        for key in fields(getattr(sections, section.name)):
            assert f"\n{key.name} = " in DOCUMENTED


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"/absent.toml: cannot be read: No such file"):
        c.load(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[broker", "is not TOML: "),
        ("[broker]\nprefetch = 0", "broker.prefetch: a number from 1 to 65535"),
        ("[broker]\nprefetch = 'many'", "broker.prefetch: an integer is expected"),
        ("[broker]\nqueues = 'x'", "broker.queues: unknown key"),
        ("[brokers]", "brokers: unknown key"),
        ("[broker]\nurls = []", "broker.urls: at least one"),
        ("[broker]\nurls = ['http://knime@h/']", "broker.urls[0]: does not begin with amqp"),
        ("[broker]\nurls = ['amqp://h/']", "broker.urls[0]: lacks a user or a host"),
        ("[broker]\nurls = ['amqp://knime@h:99999/']", "broker.urls[0]: Port out of range"),
        ("[broker]\nurls = ['amqp://knime@h/a/b']", "broker.urls[0]: has more than one /"),
        ("[broker]\nurls = ['amqp://knime@h/?heartbeat=0']", "broker.urls[0]: has options"),
        ("[broker]\nqueue = ''", "broker.queue: a name of 1 to 255"),
        ("[broker]\nqueue = 'q'\nparked_queue = 'q'", "broker.parked_queue: another queue"),
        ("[broker]\nca_file = '/absent/ca.pem'", "broker.ca_file: cannot be read: /absent/ca.pem"),
        ("[broker]\npassword_file = '/absent/pw'", "broker.password_file: cannot be read: /absent/pw"),
        ("[broker]\nclient_cert_file = '/c'", "broker.client_cert_file, broker.client_key_file: both or neither"),
        ("[hand_over]\nmode = 'tap'", "hand_over.mode: one of 'republish', 'requeue'"),
        ("[hand_over]\nready = 'soon'", "hand_over.ready: one of 'broker-connection', 'delay'"),
        ("[hand_over]\nready_addresses = ['broker']", "hand_over.ready_addresses: 'broker' is no IP address"),
        ("[hand_over]\nretry_initial = 1.0", "hand_over.retry_initial: at most"),
        ("[hand_over]\nretry_max = nan", "hand_over.retry_max: a number"),
        ("[broker]\nmax_hold = 10.0", "hand_over.start_timeout: at most broker.max_hold"),
        ("[helper]\nsocket = 'helper.sock'", "helper.socket: an absolute path"),
        ("[cluster]\nenabled = true\nhost = 'a b'", "cluster.host"),
        ("[cluster]\nexchange = ''", "cluster.exchange"),
        ("[cluster]\nexecutors_per_user = 0", "cluster.executors_per_user"),
        ("[cluster]\ndead_after = 1.0", "cluster.dead_after: at least twice"),
        ("[metrics]\nlisten = 'localhost:9469'", "metrics.listen: an IP address and a port are expected"),
        ("[metrics]\nlisten = '127.0.0.1'", "metrics.listen: an IP address and a port are expected"),
        ("[metrics]\nlisten = '127.0.0.1:99999'", "metrics.listen: an IP address and a port are expected"),
        ("[metrics]\nlisten = '::1:9469'", "metrics.listen: an IP address and a port are expected"),
        ("[metrics]\nlisten = '[::1]:'", "metrics.listen: an IP address and a port are expected"),
    ],
)
def test_a_fault_is_named_by_file_and_key_with_what_is_expected(tmp_path: Path, text: str, fault: str) -> None:
    (found,) = faults(tmp_path, text)
    assert found.startswith(fault)


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (found,) = faults(tmp_path, "[broker]\nurls = ['amqp://knime:s3cret@h/']")
    assert "password" in found
    assert "s3cret" not in found


def test_all_faults_are_found_at_once(tmp_path: Path) -> None:
    text = "[broker]\nurls = ['x', 'amqp://a:b@c']\n[cluster]\nexecutors_per_user = 0\n[helper]\nsocket = 'x'"
    assert len(faults(tmp_path, text)) == 4


def test_certificates_that_are_none_are_a_fault(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    (found,) = faults(tmp_path, f"[broker]\nca_file = '{tmp_path}/ca.pem'")
    assert "no certificates that can be used" in found


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the key")
def test_an_encrypted_key_is_a_fault_and_nobody_is_asked_for_its_passphrase(tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -passout pass:x -subj /CN=k -days 1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    text = f"[broker]\nclient_cert_file = '{tmp_path}/cert.pem'\nclient_key_file = '{tmp_path}/key.pem'"
    (found,) = faults(tmp_path, text)
    assert "encrypted" in found


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://knime@h", c.BrokerUrl(tls=False, user="knime", host="h", port=5672, vhost="/")),
        ("amqp://knime@h/", c.BrokerUrl(tls=False, user="knime", host="h", port=5672, vhost="/")),
        ("amqps://kn%40me@h/%2Fa%2F", c.BrokerUrl(tls=True, user="kn@me", host="h", port=5671, vhost="/a/")),
        ("amqp://k@[::1]:1/v", c.BrokerUrl(tls=False, user="k", host="::1", port=1, vhost="v")),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: c.BrokerUrl) -> None:
    assert c.parse_url(url) == expected


def test_a_tls_connection_always_verifies_certificate_and_host_name() -> None:
    context = c.tls_context(c.BrokerConfig())
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No credential anywhere: not the unit's, and not root's of this machine."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(c, "ROOT_PASSWORD", tmp_path / "root" / "broker-password")
    (tmp_path / "root").mkdir()
    (tmp_path / "credentials").mkdir()
    return tmp_path


def test_the_password_is_the_files_then_the_credential_then_roots(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nowhere / "root" / "broker-password").write_text("roots\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert c.read_password(c.BrokerConfig()) == "roots"
    (nowhere / "credentials" / "broker-password").write_text("-")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(nowhere / "credentials"))
    assert c.read_password(c.BrokerConfig()) == "roots"
    (nowhere / "credentials" / "broker-password").write_bytes(b"credential\r\n\n")
    assert c.read_password(c.BrokerConfig()) == "credential"
    (nowhere / "file").write_text("files: p@ss w\u00f6rd")
    assert c.read_password(c.BrokerConfig(password_file=str(nowhere / "file"))) == "files: p@ss w\u00f6rd"


def test_roots_password_is_for_root_alone(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "root" / "broker-password").write_text("roots\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(c.NoPassword):
        c.read_password(c.BrokerConfig())


@pytest.mark.usefixtures("nowhere")
def test_a_missing_password_says_where_it_belongs() -> None:
    with pytest.raises(c.NoPassword, match=r"root/broker-password.*credential broker-password"):
        c.read_password(c.BrokerConfig())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "does not exist"),
        (b"\n", "is empty"),
        (b"\r\n", "is empty"),
        (b"\xff", "not UTF-8"),
        (b"\xef\xbb\xbfs3cret\n", "byte order mark"),
        (b"\xff\xfes\0", "UTF-16"),
        (b"s3cret\nsecond\n", "more than one line"),
        (b"s3cret\0", "control character"),
        (b"s" * 5000, "longer than 4096 bytes"),
    ],
)
def test_a_password_file_that_cannot_be_used_is_named(nowhere: Path, content: bytes | None, why: str) -> None:
    path = nowhere / "pw"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(c.NoPassword, match=f"{path}: .*{why}"):
        c.read_password(c.BrokerConfig(password_file=str(path)))


def test_max_parkable_below_max_body_is_a_fault(tmp_path: Path) -> None:
    """Else nothing over max_body could be parked."""
    text = "[broker]\nmax_body = 2048\nmax_parkable = 2047\n"
    assert faults(tmp_path, text) == ["broker.max_parkable: at least broker.max_body is expected"]
