"""The rules that a reviewer of the root side may rely on, read from the source itself.

Who imports what, how much code runs as root, which calls it makes, and that each says why.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.lab.sources import AS_ROOT, GATE, HELPER, LISTENER, PROTOCOL, ROOT, code_lines, files, source, tree

OWN = {"protocol", "root_helper", "broker_listener"}
MAX_ROOT_LINES, MAX_FILE_LINES = 1500, 250
ROOT_LINES_TODAY = 2906
"""More than that is too much in any case; it only ever gets smaller."""


@cache
def imported(file: str) -> frozenset[str]:
    """Give the dotted names that a file imports, wherever in it; a relative import is its package's."""
    names = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "" if not node.level else f"{Path(file).parts[0]}.{node.module or ''}"
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def libraries(file: str) -> set[str]:
    return {name.split(".")[0] for name in imported(file)}


def beyond_the_standard_library(file: str) -> set[str]:
    return libraries(file) - sys.stdlib_module_names


def importers(library: str, among: list[str]) -> set[str]:
    return {file for file in among if library in libraries(file)}


def importers_of(module: str) -> set[str]:
    return {file for file in LISTENER if module in imported(file)}


@pytest.mark.parametrize("file", PROTOCOL)
def test_protocol_imports_the_standard_library_alone_and_does_no_input_or_output(file: str) -> None:
    assert beyond_the_standard_library(file) <= {"protocol"}
    assert libraries(file).isdisjoint({"os", "io", "pathlib", "socket", "subprocess", "ctypes", "logging", "time"})
    assert "open" not in called_names(file)


@pytest.mark.parametrize("file", [file for file in HELPER if file != GATE])
def test_what_runs_as_root_imports_protocol_posix1e_and_the_standard_library_alone(file: str) -> None:
    assert beyond_the_standard_library(file) <= {"protocol", "root_helper", "posix1e"}


def test_the_gate_imports_zmq_and_the_standard_library_alone() -> None:
    """Not even protocol: it is executed by its path, isolated (python3 -I), and never looks into a frame."""
    assert beyond_the_standard_library(GATE) == {"zmq"}


def test_nothing_that_runs_as_root_imports_the_gate() -> None:
    assert [file for file in AS_ROOT if "root_helper.gate" in imported(file)] == []


def test_the_two_sides_never_meet() -> None:
    assert importers("broker_listener", [*PROTOCOL, *HELPER]) == set()
    assert importers("root_helper", [*PROTOCOL, *LISTENER]) == set()


IMPORTERS = {
    "posix1e": {"root_helper/acl.py"},
    "pwd": {"root_helper/accounts.py"},
    "grp": set(),  # it cannot tell "absent" from "not answered"
    "zmq": {GATE},
    "pika": set(),
    "psutil": set(),
}


@pytest.mark.parametrize(("library", "expected"), IMPORTERS.items(), ids=IMPORTERS)
def test_a_library_has_one_importer_in_the_helper(library: str, expected: set[str]) -> None:
    assert importers(library, [*PROTOCOL, *HELPER]) == expected


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("zmq", "broker_listener/helper.py"),
        ("prometheus_client", "broker_listener/metrics.py"),
        ("click", "broker_listener/operator/"),
        ("rich", "broker_listener/operator/"),
        ("posix1e", "nowhere"),
    ],
)
def test_a_library_has_one_importer_in_the_listener(library: str, only: str) -> None:
    assert {file for file in importers(library, LISTENER) if not file.startswith(only)} == set()


def test_pika_has_one_importer_in_each_program_of_the_unprivileged_side() -> None:
    """The daemon's second file holds what it replaces of pika's internals, and nothing but ``broker`` imports it."""
    own = {"broker_listener/broker.py", "broker_listener/pika_seam.py"}
    assert importers("pika", LISTENER) <= own | {"broker_listener/operator/broker.py"}
    assert importers_of("broker_listener.pika_seam") <= {"broker_listener/broker.py", "broker_listener/__main__.py"}


OPERATOR = [file for file in LISTENER if file.startswith("broker_listener/operator/")]


def test_the_daemon_imports_nothing_of_the_operators_command() -> None:
    daemon = [file for file in LISTENER if file not in OPERATOR]
    assert [f for f in daemon if any(name.startswith("broker_listener.operator") for name in imported(f))] == []


def test_of_the_operators_command_what_needs_no_broker_loads_no_pika() -> None:
    """``audit`` and ``status`` work, and are quick, where the broker's library is broken."""
    program = "import sys; import {}; sys.exit('pika' in sys.modules or 'zmq' in sys.modules)"
    for name in ("__main__", "audit", "check", "observe", "import_config", "parked"):
        command = [sys.executable, "-c", program.format(f"broker_listener.operator.{name}")]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0, name


def test_there_is_nothing_between_the_packages_but_what_this_page_knows() -> None:
    for file in [*HELPER, *LISTENER]:
        known = OWN | {"zmq", "posix1e", "pika", "psutil", "prometheus_client", "click", "rich"}
        assert beyond_the_standard_library(file) <= known, file


def test_lines_are_counted_without_blanks_comments_and_docstrings() -> None:
    text = '"""Two\nlines."""\n\n# why\nA = """a\nb"""  # two lines of code\n"""What A is."""\n\n\ndef f() -> int:\n'
    assert code_lines(f'{text}    """Doc."""\n    return (\n        1\n    )\n') == 6


@pytest.mark.xfail(reason="what runs as root is larger than it shall be: see SECURITY.md", strict=True)
def test_what_runs_as_root_can_be_read_in_an_hour() -> None:
    counts = {file: code_lines(source(file)) for file in AS_ROOT}
    assert sum(counts.values()) <= MAX_ROOT_LINES, counts


def test_what_runs_as_root_does_not_grow() -> None:
    counts = {file: code_lines(source(file)) for file in AS_ROOT}
    assert sum(counts.values()) <= ROOT_LINES_TODAY, counts


@pytest.mark.parametrize("file", [*PROTOCOL, *HELPER])
def test_a_file_can_be_read_in_one_go(file: str) -> None:
    assert code_lines(source(file)) <= MAX_FILE_LINES


PRIVILEGED = (
    r"os\.[fl]?chown|os\.set(e|re|res)?[ug]id|os\.(setgroups|initgroups)|os\.fork(pty)?|os\.kill(pg)?"
    r"|os\.(chroot|setns|unshare|posix_spawnp?)|signal\.pidfd_send_signal|subprocess\.\w+|.*\.applyto"
)


def called(file: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def called_names(file: str) -> set[str]:
    return {name for name, _ in called(file)}


def says_why(file: str, line: int) -> bool:
    return any("PRIVILEGED: " in text for text in source(file).splitlines()[max(0, line - 4) : line - 1])


@pytest.mark.parametrize("file", HELPER)
def test_every_call_that_uses_root_says_why_in_the_three_lines_above_it(file: str) -> None:
    silent = [
        f"{file}:{line}: {name}"
        for name, line in called(file)
        if re.fullmatch(PRIVILEGED, name) and not says_why(file, line)
    ]
    assert silent == []


def test_the_rule_sees_the_calls_that_are_there() -> None:
    """The pattern would be worth nothing if it missed the calls that every start makes."""
    seen = {name for file in HELPER for name in called_names(file) if re.fullmatch(PRIVILEGED, name)}
    assert {"os.setgroups", "os.setresgid", "os.setresuid", "os.fork", "os.fchown", "subprocess.run"} <= seen


@pytest.mark.parametrize("file", [*PROTOCOL, *HELPER])
def test_no_privileged_call_goes_by_another_name(file: str) -> None:
    """``from os import setuid`` or ``import os as system`` would hide a call from the rule above."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in {"os", "signal", "subprocess", "ctypes", "shutil"}, f"{file}:{node.lineno}"
        if isinstance(node, ast.Import):
            assert all(alias.asname is None for alias in node.names), f"{file}:{node.lineno}"


SUBPROCESS = {f"root_helper/{name}.py" for name in ("bus", "directories")}
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "breakpoint", "input"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "importlib", "runpy", "code", "pty", "multiprocessing", "shutil"}


@pytest.mark.parametrize("file", [*PROTOCOL, *HELPER])
def test_root_uses_no_shell_no_code_from_data_and_no_copy_of_its_environment(file: str) -> None:
    assert called_names(file).isdisjoint(FORBIDDEN)
    assert not [name for name in called_names(file) if re.fullmatch(r"os\.(spawn\w+|execl\w*|execvp\w*)", name)]
    assert libraries(file).isdisjoint(FORBIDDEN_MODULES)
    assert "os.environ.copy" not in called_names(file)
    arguments = {(key.arg, ast.unparse(key.value)) for node in ast.walk(tree(file)) for key in keywords(node)}
    assert not [name for name, value in arguments if (name == "shell" and value != "False") or name == "preexec_fn"]


def keywords(node: ast.AST) -> list[ast.keyword]:
    return node.keywords if isinstance(node, ast.Call) else []


def test_subprocess_is_used_for_busctl_and_mkhomedir_alone() -> None:
    assert importers("subprocess", [*PROTOCOL, *HELPER]) <= SUBPROCESS


@pytest.mark.parametrize("file", [file for file in AS_ROOT if not file.startswith("protocol/")])
def test_root_checks_with_raise_and_never_with_assert_which_python_can_leave_out(file: str) -> None:
    assert [node.lineno for node in ast.walk(tree(file)) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("file", [*PROTOCOL, *HELPER, *LISTENER])
def test_no_error_is_swallowed(file: str) -> None:
    """What is caught without being named is raised again, and ``except Exception`` does something."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            raised_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            assert caught != "BaseException" or raised_again, f"{file}:{node.lineno}"
            assert caught != "Exception" or not isinstance(node.body[0], ast.Pass), f"{file}:{node.lineno}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "contextlib.suppress":
            assert not {"Exception", "BaseException"} & {ast.unparse(argument) for argument in node.args}


@pytest.mark.parametrize("file", [*PROTOCOL, *HELPER, *LISTENER])
def test_a_file_says_what_it_is_for(file: str) -> None:
    assert ast.get_docstring(tree(file))


def test_no_test_imports_another() -> None:
    """What two tests share stands in tests/lab, so that each can be run, moved and read alone."""
    for directory in ("unit", "integration", "security", "system"):
        for file in files(f"tests/{directory}"):
            suites = {name.split(".")[1] for name in imported(file) if name.startswith("tests.")}
            assert suites <= {"", "lab", "bench", "fuzz", "simulated_knime"}, file
