"""What an installation brings along for a node, and where that belongs on the machine.

A package of the distribution puts units, man pages and completions in their places itself; a
virtual environment has them in its own share/, where nobody looks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from standfast.errors import StandfastError
from standfast.system.files import read_foreign_text

UNITS = Path("/etc/systemd/system")
VENDOR_UNITS = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
CATALOG = Path("/usr/lib/systemd/catalog/standfast.catalog")
PROGRAMS = Path("/usr/local/bin")
SHARE = Path("/usr/local/share")
VENDOR_SHARE = Path("/usr/share")
SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where systemd looks for a program that a unit names without a path."""
CATALOG_FILE = "standfast.catalog"
EVERYWHERE = "standfast-watch@.service"
"""A unit that clients have, too."""
GUARD = "nfs-server.service.d/standfast.conf"
PAGES = ("man", "bash-completion", "zsh", "fish")
NAMES = (
    "standfast",
    "standfast-exporter",
    "nfs-server-guard",
    "data-services-changed",
    "data-services-remount",
    "storage-role-changed",
)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the machine's directories are; a test has them below another root."""

    root: Path = Path("/")
    prefix: Path = Path(sys.prefix)
    """Of the installation."""

    def at(self, path: Path) -> Path:
        return self.root / path.relative_to("/")

    def text(self, path: Path) -> str | None:
        """Returns what a file holds; None where there is none."""
        try:
            return read_foreign_text(self.at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None


@dataclass(frozen=True, slots=True)
class Shipped:
    """What was found, with texts."""

    units: Mapping[str, str]
    """By their names below the directory of units; drop-ins as `UNIT.d/NAME.conf`."""
    catalog: str
    by_package: frozenset[str]
    """Of `units` those that a package has put into its own place."""
    pages: Mapping[Path, str]
    """Man pages and completions by where they belong; none that are found already."""
    programs: Mapping[str, Path]
    """Programs that systemd doesn't find, and where they are."""


def units_directory(places: Places) -> Path:
    """Returns where the installation has its units: a package's are in their place already.
    StandfastError when there are none."""
    known = (
        places.prefix / "share/standfast/systemd",
        Path("/usr/share/standfast/systemd"),
        Path(__file__).resolve().parents[2] / "systemd",
        *map(places.at, VENDOR_UNITS),
    )
    for place in known:
        if (place / EVERYWHERE).is_file():
            return place
    raise StandfastError(
        f"the units are in none of {', '.join(map(str, known))}: install Standfast again"
    )


def look(places: Places) -> Shipped:
    """Looks at the installation that runs; StandfastError, OSError."""
    directory = units_directory(places)
    paths = [*directory.glob("standfast-*.*"), directory / GUARD, directory / CATALOG_FILE]
    texts = {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(paths)
        if path.is_file()
    }
    catalog = texts.pop(CATALOG_FILE, "")
    by_package = frozenset(name for name in texts if _in_vendor(places, name))
    return Shipped(texts, catalog, by_package, _pages(places), _programs(places))


def _in_vendor(places: Places, name: str) -> bool:
    return any(places.at(vendor / name).is_file() for vendor in VENDOR_UNITS)


def _pages(places: Places) -> dict[Path, str]:
    share = places.prefix / "share"
    pages: dict[Path, str] = {}
    if places.prefix in (Path("/usr"), Path("/usr/local")):
        return pages
    for kind in PAGES:
        for path in sorted((share / kind).rglob("*standfast*")):
            below = path.relative_to(share)
            packaged = VENDOR_SHARE / below, VENDOR_SHARE / f"{below}.gz"
            if path.is_file() and not any(places.at(page).exists() for page in packaged):
                pages[SHARE / below] = path.read_text()
    return pages


def _programs(places: Places) -> dict[str, Path]:
    own = places.prefix / "bin"
    return {
        name: own / name
        for name in NAMES
        if (own / name).is_file() and not _is_found(places, name, own)
    }


def _is_found(places: Places, name: str, own: Path) -> bool:
    """Tells whether systemd finds the program, other than by setup's own link into `own`."""
    for directory in map(Path, SEARCHED):
        path = places.at(directory / name)
        is_ours = directory == PROGRAMS and path.is_symlink() and path.readlink().parent == own
        if path.is_file() and not is_ours:
            return True
    return False
