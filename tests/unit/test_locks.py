"""What is installed is what was looked at: each package by version, and its files by hash."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.checkout import CHECKOUT

DEV, RUNTIME, OF_UV = (
    CHECKOUT / f"requirements{name}.lock" for name in ("", "-runtime", "-uv")
)  # fmt: skip
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
BUILD = PROJECT["build-system"]["requires"]
ENTRY = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\\n]+?))?"
    r"(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def entries(lock: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each package; nothing else may be in the file."""
    text = lock.read_text()
    assert ENTRY.sub("", text) == "", "an entry without a hash, or something else"
    return {
        canonicalize_name(entry["name"]): (
            entry["version"],
            frozenset(re.findall("sha256:([0-9a-f]+)", entry["hashes"])),
        )
        for entry in ENTRY.finditer(text)
    }


def missing(requirements: list[str], lock: Path) -> list[str]:
    """Those that the lock doesn't satisfy."""
    there = entries(lock)
    parsed = [Requirement(text) for text in requirements]
    return [
        str(each)
        for each in parsed
        if (name := canonicalize_name(each.name)) not in there
        or there[name][0] not in each.specifier
    ]


@pytest.mark.parametrize(
    ("requirements", "lock"),
    [
        ([*RUN, *BUILD, *PROJECT["dependency-groups"]["dev"]], DEV),
        (RUN, RUNTIME),
        (["uv>=0.5,<1"], OF_UV),
    ],
    ids=["development", "runtime", "uv"],
)
def test_a_lock_has_what_the_project_asks_for_with_hashes(
    requirements: list[str], lock: Path
) -> None:
    assert missing(requirements, lock) == []


def test_a_lock_that_lacks_something_is_seen(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    digest = "a" * 64
    lock.write_text(f"requests==2.0 \\\n    --hash=sha256:{digest}\n")
    assert missing(["requests>=2.32", "tqdm"], lock) == ["requests>=2.32", "tqdm"]
    for wrong in ("tqdm==4.66\n", "--index-url https://mirror\n", f"x>=1 --hash=sha256:{digest}\n"):
        lock.write_text(f"requests==2.33 \\\n    --hash=sha256:{digest}\n{wrong}")
        with pytest.raises(AssertionError, match="without a hash"):
            missing(["requests"], lock)


def test_a_node_gets_what_was_tested() -> None:
    tested = entries(DEV)
    assert {name: tested[name] for name in entries(RUNTIME)} == entries(RUNTIME)


@pytest.mark.parametrize(("roots", "lock"), [(RUN, RUNTIME), ([*RUN, *BUILD], DEV)])
def test_what_those_need_is_locked_as_well(roots: list[str], lock: Path) -> None:
    there, todo, seen = entries(lock), [Requirement(text).name for text in roots], set[str]()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    assert seen <= there.keys()


def test_what_builds_it_is_one_version_and_nothing_is_fetched_for_it() -> None:
    assert all(re.fullmatch(r"[a-z]+==[0-9.]+", text) for text in BUILD)
    makefile = (CHECKOUT / "Makefile").read_text()
    for line in makefile.splitlines():
        if re.search(r"\b(pip install|build) -q", line):
            assert "--require-hashes" in line or "--no-build-isolation" in line, line


def test_the_guides_install_by_the_lock() -> None:
    for name in ("README.md", "docs/operators-guide.md"):
        text = (CHECKOUT / name).read_text()
        assert "pip install --require-hashes -r requirements-runtime.lock" in text, name
        assert "pip install --no-deps --force-reinstall standfast-" in text, name
