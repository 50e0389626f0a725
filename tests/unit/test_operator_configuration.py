"""What commands read of both configuration files: the helper's own keys and defaults, without the helper's code."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from broker_listener.operator.configuration import HelperKeys, broker_password, load, load_helper_keys
from broker_listener.operator.outcome import Outcome, Stopped
from protocol.settings import SettingsError
from root_helper.config import HelperConfig

ETC = Path(__file__).parents[2] / "etc"


def values(keys: object, of: object, where: str = "") -> Iterator[tuple[str, object, object]]:
    """Give each key that commands know: its name, its default here and the helper's."""
    for entry in fields(keys):  # type: ignore[arg-type]  # a dataclass, by construction
        here, helpers = getattr(keys, entry.name), getattr(of, entry.name)
        if is_dataclass(here):
            yield from values(here, helpers, f"{where}{entry.name}.")
        else:
            yield f"{where}{entry.name}", here, helpers


@pytest.mark.parametrize(("key", "here", "helpers"), list(values(HelperKeys(), HelperConfig())))
def test_a_key_that_commands_know_is_the_helpers_with_the_helpers_default(
    key: str, here: object, helpers: object
) -> None:
    assert here == helpers, key


def test_the_shipped_files_give_the_defaults() -> None:
    assert load(ETC).helper == HelperKeys()


def test_keys_that_only_the_helper_knows_are_no_fault_here(tmp_path: Path) -> None:
    file = tmp_path / "helper.toml"
    file.write_text('[executor]\nhome = "/srv/knime-5.2"\nprefix = ["/usr/bin/k5start"]\n[new]\nkey = 1\n', "utf-8")
    assert load_helper_keys(file).executor.home == "/srv/knime-5.2"


def test_a_key_of_another_type_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "helper.toml"
    file.write_text("[limits]\nmax_executors = 'many'\n", "utf-8")
    with pytest.raises(SettingsError) as error:
        load_helper_keys(file)
    assert error.value.faults == [f"{file}: limits.max_executors: an integer is expected"]


def test_a_missing_file_stops_the_command_as_wrong_configuration(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        load(tmp_path)
    assert stopped.value.outcome is Outcome.USAGE
    assert str(tmp_path / "listener.toml") in str(stopped.value)


def test_the_password_is_the_one_beside_the_files_unless_listener_toml_names_another(tmp_path: Path) -> None:
    (tmp_path / "helper.toml").touch()
    (tmp_path / "broker-password").write_text("beside\n", "utf-8")
    (tmp_path / "elsewhere").write_text("elsewhere\n", "utf-8")
    (tmp_path / "listener.toml").touch()
    assert broker_password(load(tmp_path)) == "beside"
    (tmp_path / "listener.toml").write_text(f'[broker]\npassword_file = "{tmp_path}/elsewhere"\n', "utf-8")
    assert broker_password(load(tmp_path)) == "elsewhere"


def test_no_password_stops_the_command_and_says_where_it_was_looked_for(tmp_path: Path) -> None:
    for name in ("helper.toml", "listener.toml"):
        (tmp_path / name).touch()
    with pytest.raises(Stopped) as stopped:
        broker_password(load(tmp_path))
    assert stopped.value.outcome is Outcome.NOT_PERMITTED
    assert str(tmp_path / "broker-password") in str(stopped.value)


def test_neither_pika_nor_the_helpers_code_is_loaded_before_root_is_given_up() -> None:
    loaded = "import sys, broker_listener.operator.unprivileged as u; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert {"pika", "root_helper", "zmq"}.isdisjoint(run.stdout.split())
