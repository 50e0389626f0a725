"""The command knime-broker-listener up to the point where it would serve."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def run(*arguments: str, credentials: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(CHECKOUT), "LANG": "C.UTF-8"}
    if credentials is not None:
        environment["CREDENTIALS_DIRECTORY"] = str(credentials)
    command = [sys.executable, "-m", "broker_listener", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/", timeout=30)


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    (tmp_path / "broker-password").write_text("secret\n")
    file = tmp_path / "listener.toml"
    file.write_text("")
    return file


def test_check_of_a_good_configuration_says_nothing_and_exits_0(configuration: Path) -> None:
    done = run("--config", str(configuration), "--check", credentials=configuration.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in configuration.parent.iterdir()) == ["broker-password", "listener.toml"]


def test_each_fault_is_one_line_that_names_file_and_key_and_the_status_is_2(configuration: Path) -> None:
    configuration.write_text('[broker]\nprefetch = 0\n[hand_over]\nmode = "x"\ncolour = 1\n')
    done = run("--config", str(configuration), "--check", credentials=configuration.parent)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{configuration}: ") for line in lines)


def test_a_missing_password_is_a_fault_that_says_where_it_belongs(configuration: Path) -> None:
    (configuration.parent / "broker-password").unlink()
    configuration.write_text(f'[broker]\npassword_file = "{configuration.parent}/broker-password"\n')
    done = run("--config", str(configuration), "--check", credentials=configuration.parent)
    assert done.returncode == 2
    assert "broker-password" in done.stderr


@pytest.mark.needs("root")
def test_it_refuses_to_serve_as_root(configuration: Path) -> None:
    done = run("--config", str(configuration), credentials=configuration.parent)
    assert done.returncode == 2
    assert "runs as root" in done.stderr


def test_help_names_the_exit_statuses_and_the_files() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("--config FILE", "--check", "exit status:", "/etc/knime-peruser/listener.toml", "SIGTERM"):
        assert word in done.stdout


def test_a_call_without_a_configuration_is_a_usage_fault() -> None:
    assert run().returncode == 2
