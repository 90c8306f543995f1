"""The product as its wheel installs it, laid out for the nodes' interpreter.

Invariant: nothing of it comes from the checkout but through the wheel; the dependencies are the
locked ones of the environment that runs the tests.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.checkout import CHECKOUT
from tests.support.commands import LabError, sh

PREFIX = Path("opt/standfast")
_FOREIGN = re.compile(r"^(python|pip|activate)")


def lay_out(tree: Path) -> Path:
    """Build the wheel, and lay out below `tree` what belongs below / of a node; `tree`."""
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        raise LabError(f"the wheel is built by uv, and {uv} is missing: make venv")
    dist = tree.with_name("dist")
    locked = ("--no-build-isolation", "--python", sys.executable)
    sh(uv, "build", "--quiet", "--wheel", *locked, "--out-dir", dist, CHECKOUT, timeout_s=120.0)
    [wheel] = dist.glob("*.whl")
    prefix = tree / PREFIX
    sh(uv, "venv", "--quiet", "--python", sys.executable, prefix)
    sh(uv, "pip", "install", "--quiet", "--no-deps", "--python", prefix / "bin/python", wheel)
    [library] = prefix.glob("lib/python*/site-packages")
    for name in _dependencies("standfast") - {"standfast"}:
        _copy(name, library)
    _move_in(tree, prefix)
    _compile(prefix, library)
    return tree


def _dependencies(name: str) -> set[str]:
    """A distribution and everything it requires here."""
    names: set[str] = set()
    todo = [name]
    while todo:
        name = todo.pop()
        if name in names:
            continue
        names.add(name)
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(requirement.name))
    return names


def _copy(name: str, library: Path) -> None:
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or []:
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = library / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(distribution.locate_file(file)), target)


def _move_in(tree: Path, prefix: Path) -> None:
    """The environment's paths as they are in a node; programs, units and watches at their place."""
    interpreter = f"/{PREFIX}/bin/python"
    for link in prefix.glob("bin/python*"):
        link.unlink()
    (prefix / "bin/python").symlink_to("/usr/bin/python3")
    (prefix / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    programs = tree / "usr/local/bin"
    programs.mkdir(parents=True)
    for path in sorted(prefix.glob("bin/*")):
        if _FOREIGN.match(path.name) or path.is_symlink() or path.read_bytes()[:2] != b"#!":
            continue
        first, newline, rest = path.read_text().partition("\n")
        if "python" in first:  # else it looks beside itself
            path.write_text(f"#!{interpreter}{newline}{rest}")
        (programs / path.name).symlink_to(f"/{path.relative_to(tree)}")
    share = prefix / "share/standfast"
    shutil.copytree(share / "systemd", tree / "etc/systemd/system")
    shutil.copytree(share / "watches", tree / "usr/share/standfast/watches")


def _compile(prefix: Path, library: Path) -> None:
    """Compiled here: there each first start would pay for it, ten times as much."""
    argv = [sys.executable, "-m", "compileall", "-q", "-s", str(prefix), "-p", f"/{PREFIX}"]
    argv.append(str(library))
    sh(*argv, timeout_s=120.0)
