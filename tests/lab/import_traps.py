"""Modules that must never be imported: each ends the process that does, with a status that nothing else has.

They bear the names of everything that the daemons import, and lie where a careless Python would look.
"""

from pathlib import Path
from typing import Final

SPRUNG: Final = 86
DIRECTORY: Final = "/srv/trap"
ENVIRONMENT: Final = {"PYTHONPATH": DIRECTORY, "PYTHONHOME": DIRECTORY, "PYTHONUSERBASE": DIRECTORY, "HOME": DIRECTORY}
_MODULES: Final = (
    "protocol", "root_helper", "broker_listener", "posix1e", "pika", "zmq", "json", "logging", "argparse", "site",
    "sitecustomize", "usercustomize",
)  # fmt: skip
_TRAP: Final = f"import os\nos._exit({SPRUNG})\n"


def lay_where_anybody_may(root: Path) -> None:
    """Fill a directory that the test makes working directory, PYTHONPATH, HOME and what else may lead to it."""
    place = root / DIRECTORY.lstrip("/")
    _fill(place, _MODULES)
    for version in ("3.11", "3.12", "3.13"):
        _fill(place / f"lib/python{version}/site-packages", _MODULES)
        _fill(place / f".local/lib/python{version}/site-packages", _MODULES)


def lay_beside(launcher: Path) -> list[Path]:
    """Put modules beside a launcher, where Python looks first unless told not to; give them."""
    return _fill(launcher.parent, _MODULES)


def lay_in_usr_local(root: Path) -> list[Path]:
    """Put modules and a .pth file into the site directories that a pip run by root fills; give them."""
    laid = []
    for site in (root / "usr/local/lib").glob("python3.*/dist-packages"):
        laid += _fill(site, ("sitecustomize", "usercustomize", "posix1e", "protocol", "root_helper"))
        laid.append(site / "trap.pth")
        laid[-1].write_text(f"import os; os._exit({SPRUNG})\n", encoding="ascii")
    assert laid, "no site directory below /usr/local"
    return laid


def _fill(directory: Path, modules: tuple[str, ...]) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.py" for name in modules]
    for path in paths:
        path.write_text(_TRAP, encoding="ascii")
    return paths
