"""helper.toml: believed only where nobody but root can have written it; every fault is one line that says the cure.

The files are real and root's, in a directory that nobody else can write: pytest's own lies below a sticky /tmp.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from protocol.settings import SettingsError
from root_helper.config import GroupLimit, HelperConfig
from root_helper.config_file import config_faults, load, read_msgq
from root_helper.trusted_files import trusted_directory_faults

EXAMPLE = Path(__file__).parents[2] / "etc" / "helper.toml"
URL = "amqp://knime-executor:s3cret@127.0.0.1:5672/%2F"
SOMEBODY = 12345

pytestmark = pytest.mark.needs("root")
Load = Callable[[str], HelperConfig]


@pytest.fixture
def place() -> Iterator[Path]:
    """Give an empty directory that only root can write, as all above it."""
    directory = Path(tempfile.mkdtemp(prefix="kpr-test-", dir="/opt"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def loaded(place: Path) -> Load:
    """Give what loads a text as helper.toml."""

    def from_text(toml: str) -> HelperConfig:
        file = place / "helper.toml"
        file.write_text(toml, encoding="utf-8")
        file.chmod(0o644)
        return load(str(file))

    return from_text


def faults_of(call: Callable[[], object]) -> list[str]:
    with pytest.raises(SettingsError) as error:
        call()
    assert all(fault.isprintable() for fault in error.value.faults)
    return error.value.faults


def test_an_empty_file_gives_the_defaults(loaded: Load) -> None:
    assert loaded("") == HelperConfig()


def test_the_shipped_example_is_the_defaults(loaded: Load) -> None:
    assert loaded(EXAMPLE.read_text(encoding="utf-8")) == HelperConfig()


def test_the_shipped_example_names_every_key() -> None:
    """Set, or commented out where it is unset by default."""
    lines = [line.removeprefix("# ") for line in EXAMPLE.read_text(encoding="utf-8").splitlines()]
    for table, key in keys(HelperConfig()):
        assert any(line.startswith((f"{key} = ", f"[{table}{key}]", f"[[{table}{key}]]")) for line in lines), key


def keys(value: object, table: str = "") -> Iterator[tuple[str, str]]:
    for entry in fields(value):  # type: ignore[arg-type]  # a dataclass, by construction
        inner = getattr(value, entry.name)
        if is_dataclass(inner):
            yield from keys(inner, f"{table}{entry.name}.")
        else:
            yield table, entry.name


def test_every_key_can_be_set(loaded: Load) -> None:
    config = loaded("""
        [executor]
        home = "/opt/knime-5.2"
        arguments = ["-data", "{workspace}", "{temp}", "{home}", "{os_user}", "{knime_user}", "{uid}", ""]
        reservation = '(user = "{knime_user}" AND os = "{os_user}")'
        msgq_file = "/etc/knime/url"
        prefix = ["/usr/bin/k5start", "-f", "/etc/keytabs/{os_user}.keytab", "--"]
        [executor.environment]
        KRB5CCNAME = "FILE:{temp}/krb5cc"
        [executor.limits]
        nofile = "64K"
        core = 0
        [users]
        min_uid = 1
        max_uid = 4294967294
        qualified_names = true
        [users.map]
        "Admin@example.com" = "alice@example.com"
        [workspace.names]
        bob = "Bob"
        [workspace.acl]
        extra = ["g:domain users:r-x", "g:knime-backup:r--", "u:knime-backup:rwx"]
        [limits]
        lookup_timeout = 5
        idle_after = 120
    """)
    assert config.executor.limits.amounts() == {"nofile": 65536, "core": 0}
    assert config.users.map == {"Admin@example.com": "alice@example.com"}
    assert config.workspace.names == {"bob": "Bob"}
    assert config.limits.lookup_timeout == 5.0
    assert HelperConfig().executor.limits.amounts() == {}


def test_a_log_directory_that_others_can_write_is_a_fault(host: HelperConfig, place: Path) -> None:
    (place / "log").chmod(0o777)
    (fault,) = config_faults(host)
    assert fault.startswith(f"audit.path: {place}/log: mode 0777")


def test_a_log_directory_is_looked_at_where_a_symbolic_link_leads(host: HelperConfig, place: Path) -> None:
    (place / "elsewhere").mkdir()
    (place / "elsewhere").chmod(0o777)
    (place / "log").rmdir()
    (place / "log").symlink_to(place / "elsewhere")
    (fault,) = config_faults(host)
    assert fault.startswith(f"audit.path: {place}/elsewhere: mode 0777")


def test_a_group_has_all_the_limits_that_an_executor_has() -> None:
    assert GroupLimit(group="g", memory_max="1G").memory_max == "1G"


FAULTS = {
    "executor.homes": "[executor]\nhomes = '/opt'",
    "sockets": "[sockets]",
    "executor.home": "[executor]\nhome = 'opt/knime'",
    "executor.workspaces": "[executor]\nworkspaces = '/srv/../etc'",
    "executor.temp": "[executor]\ntemp = '/srv//temp'",
    "executor.msgq_file": "[executor]\nmsgq_file = 'url'",
    "executor.prefix[0]": "[executor]\nprefix = ['k5start', '{uid}']",
    "executor.prefix[0] ": "[executor]\nprefix = ['/usr/bin/{os_user}']",
    "socket.path": "[socket]\npath = '/run/a/'",
    "socket.path ": f"[socket]\npath = '/{'a' * 107}'",
    "socket.operator_path": "[socket]\noperator_path = '/run/knime-peruser/helper.sock'",
    "socket.listener_user": "[socket]\nlistener_user = 'root'",
    "socket.gate_user": "[socket]\ngate_user = 'knime-listener'",
    "socket.gate_user ": "[socket]\ngate_user = ''",
    "audit.path": '[audit]\npath = "/var/log/a\\nb"',
    "users.home_roots[1]": "[users]\nhome_roots = ['/home', '/']",
    "executor.temp ": "[executor]\ntemp = '/srv/knime/workspaces'",
    "executor.temp  ": "[executor]\ntemp = '/srv/knime/workspaces/temp'",
    "executor.temp   ": "[executor]\ntemp = '/srv/knime'",
    "executor.arguments[0]": "[executor]\narguments = ['{user}']",
    "executor.arguments[1]": "[executor]\narguments = ['-data', '{workspace']",
    "executor.arguments[0] ": "[executor]\narguments = ['workspace}']",
    "executor.arguments[0]  ": "[executor]\narguments = ['{{workspace}}']",
    "executor.arguments[0]   ": "[executor]\narguments = ['{workspace.__class__}']",
    "executor.arguments[0]    ": "[executor]\narguments = ['{uid!r}{}']",
    "executor.arguments[0]     ": '[executor]\narguments = ["a\\u0000b"]',
    "executor.environment.A": "[executor.environment]\nA = '{B}'",
    "executor.environment.A ": '[executor.environment]\nA = "\\u0000"',
    "executor.environment.'1A'": "[executor.environment]\n1A = ''",
    "executor.environment.'A=B'": "[executor.environment]\n'A=B' = ''",
    r"executor.environment.'A\nB'": '[executor.environment]\n"A\\nB" = ""',
    "executor.environment.''": "[executor.environment]\n'' = ''",
    "executor.reservation": "[executor]\nreservation = '(user = {knime_user})'",
    "executor.reservation ": "[executor]\nreservation = \"(user = 'bob')\"",
    "executor.reservation  ": "[executor]\nreservation = \"(user = 'a'{knime_user}'b')\"",
    "executor.reservation   ": '[executor]\nreservation = "(user = \'{knime_user})"',
    "executor.reservation    ": "[executor]\nreservation = \"(user = '{knime_user}' or home = '{home}')\"",
    "executor.reservation     ": "[executor]\nreservation = \"(user = '{knime_user}' AND group = 'g)\"",
    "executor.limits.memory_max": "[executor.limits]\nmemory_max = 1",
    "executor.group_limits[0].cpu_weight": "[[executor.group_limits]]\ngroup = 'g'\ncpu_weight = 10001",
    "executor.limits.nofile": "[executor.limits]\nnofile = 3",
    "executor.limits.nofile ": "[executor.limits]\nnofile = 'infinity'",
    "executor.limits.core": "[executor.limits]\ncore = '-1'",
    "executor.limits.core ": "[executor.limits]\ncore = '1X'",
    "executor.limits.core  ": "[executor.limits]\ncore = true",
    "users.min_uid": "[users]\nmin_uid = 0",
    "users.max_uid": "[users]\nmax_uid = 4294967295",
    "users.max_uid ": "[users]\nmin_uid = 2000\nmax_uid = 1999",
    "users.map": "[users.map]\n'a;id' = 'alice'",
    "users.map ": "[users.map]\nalice = '0'",
    "users.map  ": "[users.map]\n'a@b' = 'alice'",
    "users.map   ": '[users.map]\n"\\u212a" = "alice"',
    "users.deny_groups": "[users]\ndeny_groups = ['']",
    "workspace.names": "[workspace.names]\n'../x' = 'a'",
    "workspace.names ": "[workspace.names]\na = \"b' OR user = 'c\"",
    "workspace.acl.extra[0]": "[workspace.acl]\nextra = ['knime-backup:r-x']",
    "workspace.acl.extra[0] ": "[workspace.acl]\nextra = ['o::r-x']",
    "workspace.acl.extra[0]  ": "[workspace.acl]\nextra = ['g::r-x']",
    "workspace.acl.extra[0]   ": "[workspace.acl]\nextra = ['g:a:5']",
    "workspace.acl.extra[0]    ": "[workspace.acl]\nextra = ['g:a:r-x,o::rwx']",
    "workspace.acl.extra[1]": "[workspace.acl]\nextra = ['g:a:r-x', 'g:a:rwx']",
    "limits.max_executors": "[limits]\nmax_executors = 0",
    "limits.lookup_timeout": "[limits]\nlookup_timeout = inf",
    "limits.stop_grace": "[limits]\nstop_grace = nan",
    "limits.idle_after": "[limits]\nidle_after = 119.9",
    "limits.idle_cpu": "[limits]\nidle_cpu = 1.1",
    "audit.keep_days": "[audit]\nkeep_days = 0.5",
}


@pytest.mark.parametrize(("key", "toml"), FAULTS.items(), ids=FAULTS)
def test_a_value_that_cannot_be_meant_is_a_fault_that_names_file_and_key(
    loaded: Load, place: Path, key: str, toml: str
) -> None:
    (fault,) = faults_of(lambda: loaded(toml))
    assert fault.startswith(f"{place}/helper.toml: {key.rstrip()}: ")


FIXED = (
    *("HOME", "LOGNAME", "USER", "SHELL", "PATH", "LANG", "PWD", "TMPDIR"),
    *("KNIME_EXECUTOR_MSGQ", "KNIME_EXECUTOR_RESERVATION", "KNIME_EXECUTOR_TEMP_DIR"),
)


@pytest.mark.parametrize("name", FIXED)
def test_a_variable_that_the_helper_sets_cannot_be_overridden(loaded: Load, name: str) -> None:
    (fault,) = faults_of(lambda: loaded(f"[executor.environment]\n{name} = 'x'"))
    assert f"executor.environment.{name}: is set by the helper itself" in fault


def test_all_faults_are_told_at_once(loaded: Load) -> None:
    toml = "[executor]\nhome = 'x'\nprefix = ['y']\n[workspace.acl]\nextra = ['z']\n[limits]\nidle_after = 5"
    assert len(faults_of(lambda: loaded(toml))) == 4


@pytest.mark.parametrize("toml", ["a = ", "[a\n", "a = 1\na = 2", "a = 1" + "0" * 5000, "[" * 50_000], ids=range(5))
def test_what_is_no_toml_is_one_fault(loaded: Load, toml: str) -> None:
    (fault,) = faults_of(lambda: loaded(toml))
    assert "TOML is expected" in fault or "unknown key" in fault


def spoil_owner(file: Path) -> None:
    os.chown(file, SOMEBODY, 0)


def spoil_group(file: Path) -> None:
    file.chmod(0o664)


def spoil_others(file: Path) -> None:
    file.chmod(0o646)


def spoil_link(file: Path) -> None:
    file.rename(file.with_name("real.toml"))
    file.symlink_to("real.toml")


def spoil_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def spoil_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def spoil_size(file: Path) -> None:
    file.write_text("#" * 1_048_577, encoding="ascii")


def spoil_encoding(file: Path) -> None:
    file.write_bytes(b"# \xff")


def spoil_presence(file: Path) -> None:
    file.unlink()


SPOILED = {
    spoil_owner: "belongs to uid 12345, root is expected: chown root ",
    spoil_group: "mode 0664 lets others write it: chmod go-w ",
    spoil_others: "mode 0646 lets others write it: chmod go-w ",
    spoil_link: "a symbolic link, a regular file is expected",
    spoil_fifo: "a regular file is expected",
    spoil_directory: "a regular file is expected",
    spoil_size: "at most 1048576 bytes are expected",
    spoil_encoding: "text in UTF-8 is expected",
    spoil_presence: "No such file or directory",
}


@pytest.mark.parametrize(("spoil", "fault"), SPOILED.items(), ids=[spoil.__name__ for spoil in SPOILED])
def test_a_file_that_somebody_else_could_have_written_is_refused(
    place: Path, spoil: Callable[[Path], None], fault: str
) -> None:
    file = place / "helper.toml"
    file.write_text("", encoding="ascii")
    file.chmod(0o644)
    assert load(str(file)) == HelperConfig()
    spoil(file)
    assert [fault in text for text in faults_of(lambda: load(str(file)))] == [True]


@pytest.mark.parametrize("mode", [0o1777, 0o775, 0o757], ids=oct)
def test_a_directory_above_that_others_can_write_is_no_better_for_being_sticky(place: Path, mode: int) -> None:
    inner = place / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "helper.toml").write_text("", encoding="ascii")
    (place / "a").chmod(mode)
    expected = [f"{place}/a: mode {mode:04o} lets others write it: chmod go-w {place}/a"]
    assert faults_of(lambda: load(f"{inner}/helper.toml")) == expected
    assert trusted_directory_faults(str(inner)) == expected


def test_a_directory_above_that_belongs_to_somebody_else_is_refused(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    os.chown(place / "a", SOMEBODY, SOMEBODY)
    assert trusted_directory_faults(f"{place}/a/b") == [
        f"{place}/a: belongs to uid 12345, root is expected: chown root {place}/a"
    ]


def test_a_link_is_followed_and_everything_that_it_passes_is_looked_at(place: Path) -> None:
    """/opt/knime -> knime-5.2 is fine; a link that leads through somebody's directory is not, even back to root's."""
    for name in ("knime-5.2", "theirs", "deep/down"):
        (place / name).mkdir(parents=True)
    os.chown(place / "theirs", SOMEBODY, SOMEBODY)
    (place / "knime").symlink_to("knime-5.2")
    assert trusted_directory_faults(f"{place}/knime") == []
    (place / "theirs" / "link").symlink_to(place / "knime-5.2")
    (place / "bad").symlink_to("theirs/link")
    theirs = [f"{place}/theirs: belongs to uid 12345, root is expected: chown root {place}/theirs"]
    assert trusted_directory_faults(f"{place}/bad") == theirs
    (place / "down").symlink_to("deep/down")
    (place / "sideways").symlink_to("down/../../theirs")
    assert trusted_directory_faults(f"{place}/sideways") == theirs


def test_a_link_to_itself_and_a_file_are_no_directory(place: Path) -> None:
    (place / "loop").symlink_to("loop")
    (place / "file").touch(mode=0o644)
    (place / "dead").symlink_to("nowhere")
    for name in ("loop", "file", "file/below", "dead", "absent"):
        (fault,) = trusted_directory_faults(f"{place}/{name}")
        assert fault.startswith(f"{place}/{name}: a directory is expected")


@pytest.fixture
def host(place: Path, loaded: Load, monkeypatch: pytest.MonkeyPatch) -> HelperConfig:
    """Give a configuration whose directories, program and credential are there and right."""
    (place / "pam").touch()
    monkeypatch.setattr("root_helper.config_file.SERVICE_FILE", str(place / "pam"))
    for name in ("knime", "workspaces", "temp", "run", "home", "log"):
        (place / name).mkdir(mode=0o755)
    program = place / "knime" / "knime"
    program.touch(mode=0o755)
    (place / "msgq").write_text(f"{URL}\n", encoding="ascii")
    (place / "msgq").chmod(0o600)
    return loaded(f"""
        [socket]
        path = "{place}/run/helper.sock"
        operator_path = "{place}/run/operator.sock"
        [executor]
        home = "{place}/knime"
        msgq_file = "{place}/msgq"
        workspaces = "{place}/workspaces"
        temp = "{place}/temp"
        [users]
        home_roots = ["{place}/home"]
        [audit]
        path = "{place}/log/audit.jsonl"
    """)


def test_a_host_without_the_pam_service_has_a_fault(host: HelperConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """PAM would silently ask the stack `other` instead."""
    monkeypatch.setattr("root_helper.config_file.SERVICE_FILE", "/etc/pam.d/none-of-this-name")
    (fault,) = config_faults(host)
    assert fault.startswith("/etc/pam.d/none-of-this-name: is missing")


def test_a_host_that_is_right_has_no_fault(host: HelperConfig) -> None:
    assert config_faults(host) == []


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("executor.home", "knime"),
        ("executor.workspaces", "workspaces"),
        ("executor.temp", "temp"),
        ("users.home_roots[0]", "home"),
        ("socket.path", "run"),
        ("executor.home", "knime/knime"),
    ],
)
def test_a_place_of_the_configuration_that_others_can_write_is_a_fault(
    host: HelperConfig, place: Path, key: str, name: str
) -> None:
    (place / name).chmod(0o777)
    expected = f"{key}: {place}/{name}: mode 0777 lets others write it: chmod go-w {place}/{name}"
    assert expected in config_faults(host)


def test_an_installation_without_its_program_is_a_fault(host: HelperConfig, place: Path) -> None:
    (place / "knime" / "knime").chmod(0o644)
    assert config_faults(host) == [
        f"executor.home: {place}/knime/knime: is not executable: chmod 0755 {place}/knime/knime"
    ]
    (place / "knime" / "knime").unlink()
    (fault,) = config_faults(host)
    assert fault.startswith(f"executor.home: {place}/knime/knime: a regular file is expected: No such file")


def test_a_credential_that_others_can_read_is_a_fault_of_the_host_and_is_not_read(
    host: HelperConfig, place: Path
) -> None:
    (place / "msgq").chmod(0o640)
    expected = f"{place}/msgq: mode 0640 lets others read or write it: chmod 0600 {place}/msgq"
    assert config_faults(host) == [f"executor.msgq_file: {expected}"]
    assert faults_of(lambda: read_msgq(host)) == [expected]


@pytest.mark.parametrize("content", [URL, f"{URL}\n", f"{URL},amqps://a:b@host2:5671\n"])
def test_the_broker_url_is_one_line(host: HelperConfig, place: Path, content: str) -> None:
    (place / "msgq").write_text(content, encoding="ascii")
    assert read_msgq(host) == content.strip()


@pytest.mark.parametrize(
    "content",
    [
        *("", "\n", "-", "-\n", "s3cret", "http://s3cret@h/", f"{URL}\n{URL}", f"{URL}\n\n", f"{URL}\0", f" {URL}"),
        *(f"{URL},s3cret", f"{URL},", "amqp://", f"{URL}\u212a"),
    ],
)
def test_what_is_no_broker_url_is_refused_without_being_quoted(host: HelperConfig, place: Path, content: str) -> None:
    (place / "msgq").write_text(content, encoding="utf-8")
    (fault,) = faults_of(lambda: read_msgq(host))
    assert fault.startswith(f"{place}/msgq: one line is expected")
    assert "s3cret" not in fault


def test_the_credential_of_systemd_is_read_where_the_configuration_names_no_file(
    place: Path, loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loaded("")
    (place / "executor-msgq").write_text(URL, encoding="ascii")
    (place / "executor-msgq").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place))
    assert read_msgq(config) == URL
    monkeypatch.setattr("root_helper.config_file.MSGQ_FILE", f"{place}/fallback")
    (place / "executor-msgq").rename(place / "fallback")
    assert read_msgq(config) == URL
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert read_msgq(config) == URL
    (place / "fallback").unlink()
    (fault,) = faults_of(lambda: read_msgq(config))
    assert fault == f"{place}/fallback: cannot be read: No such file or directory"


def test_a_configuration_cannot_be_changed_by_mistake(loaded: Load) -> None:
    config = loaded("[users.map]\na = 'b'")
    with pytest.raises(AttributeError):
        config.users.min_uid = 0  # type: ignore[misc]  # that is the test
    assert isinstance(config.users.map, MappingProxyType)
