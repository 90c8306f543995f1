"""What the Debian packages say of themselves: judged without building them.

That they can be built, installed, upgraded and taken away is shown in the container lab
(tests/labs/containers/test_packages.py).
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT

DEBIAN = CHECKOUT / "debian"
CLIENT, STORAGE = "standfast-client", "standfast"
PACKAGES = (CLIENT, STORAGE)
SCRIPTS = sorted(
    path
    for kind in ("preinst", "postinst", "prerm", "postrm")
    for path in DEBIAN.glob(f"standfast*.{kind}")
)
CLIENT_UNITS = {
    "standfast-watch@.service",
    "standfast-resync.service",
    "standfast-resync.timer",
}
POLICIES = {path.name for path in (CHECKOUT / "docs").glob("*-policy*.hcl")}
ASKS_FOR = {
    "btrfs-progs": "btrfs-progs",
    "NFS server": "nfs-kernel-server",
    "nfs-ganesha": "nfs-ganesha",
    "nftables": "nftables",
    "ipset": "ipset",
    "iptables": "iptables",
    "OpenSSH": "openssh-server",
    "systemd": "systemd",
}
"""Words of the README's requirements of a storage node -> a package of Debian's."""
UP_TO_THE_CLUSTER = {
    "Consul agent",
    "`consul` command",
    "Python 3.11",
    "root",
    "Linux 5.19",
    "Landlock",
}
"""What no package of Debian's has to bring: Python's is generated when the package is built."""


def lines(package: str, kind: str) -> list[list[str]]:
    path = DEBIAN / f"{package}.{kind}"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def installed(package: str) -> Iterator[tuple[str, str]]:
    """Each file of the checkout that the package has, with the directory that it goes to."""
    for source, to in lines(package, "install"):
        found = sorted(CHECKOUT.glob(source))
        assert found, f"debian/{package}.install: {source} is missing"
        for path in found:
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                if file.is_file():
                    below = file.relative_to(path.parent).parent
                    yield str(file.relative_to(CHECKOUT)), str(Path(to) / below)
    for [source] in lines(package, "manpages"):
        yield source, "usr/share/man/man1"
    for source, name in lines(package, "bash-completion"):
        yield source, f"usr/share/bash-completion/completions/{name}"
    for source, to in lines(package, "links"):
        if source.startswith("usr/lib/standfast/bin/"):
            yield source, to


def fields(package: str) -> dict[str, str]:
    """The fields of a binary package in debian/control."""
    for paragraph in (DEBIAN / "control").read_text().split("\n\n"):
        found = dict(re.findall(r"(?ms)^([A-Z][A-Za-z-]*):(.*?)(?=^[A-Z]|\Z)", paragraph))
        if found.get("Package", "").strip() == package:
            return found
    raise AssertionError(f"debian/control has no {package}")


def dependencies(package: str) -> set[str]:
    return set(re.findall(r"(?<![\w.-])[a-z][a-z0-9.+-]+(?![}\w])", fields(package)["Depends"]))


def shipped() -> set[str]:
    """What has to be in exactly one package."""
    programs = {
        f"usr/lib/standfast/bin/{path.name}"
        for pattern in ("bin/*", "handlers/*", "exporters/standfast-*")
        for path in CHECKOUT.glob(pattern)
        if path.is_file()
    }
    folders = ("systemd", "watches", "docs/completion", "exporters/prometheus", "exporters/grafana")
    files = {
        str(path.relative_to(CHECKOUT))
        for folder in folders
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file()
    }
    return programs | files | {f"docs/{name}" for name in POLICIES} | {"docs/standfast.1"}


# What is in them


def test_every_unit_program_policy_page_and_completion_is_in_exactly_one_package() -> None:
    there = Counter(source for package in PACKAGES for source, _ in installed(package))
    assert {source: there[source] for source in shipped() if there[source] != 1} == {}


def test_a_client_has_the_units_and_the_policies_of_a_client() -> None:
    names = {Path(source).name for source, _ in installed(CLIENT)}
    units = {path.name for path in (CHECKOUT / "systemd").glob("*.*") if path.suffix != ".d"}
    assert names & units == CLIENT_UNITS
    assert names & POLICIES == {name for name in POLICIES if name.endswith("-client.hcl")}


def test_everything_goes_where_debian_looks_for_it() -> None:
    places = {source: to for package in PACKAGES for source, to in installed(package)}
    for source, to in places.items():
        if source.startswith("systemd/") and source.endswith(".conf"):
            assert to == "usr/lib/systemd/system/nfs-server.service.d"
        elif source.startswith("systemd/") and not source.endswith(".catalog"):
            assert to == "usr/lib/systemd/system", source
        elif source.startswith("usr/lib/standfast/bin/"):
            assert to == f"usr/bin/{Path(source).name}", "units and watches name it without a path"
    assert places["systemd/standfast.catalog"] == "usr/lib/systemd/catalog"
    assert places["watches/volume.json"] == "usr/share/standfast/watches"
    assert places["docs/completion/_standfast"] == "usr/share/zsh/vendor-completions"


def test_every_program_has_a_page() -> None:
    for package in PACKAGES:
        links = {to for _, to in lines(package, "links")}
        programs = {Path(to).name for to in links if to.startswith("usr/bin/")}
        pages = {Path(to).name for to in links if to.startswith("usr/share/man/")}
        assert {f"{name}.1.gz" for name in programs - {"standfast"}} == pages


def test_the_preset_enables_nothing() -> None:
    text = (DEBIAN / "90-standfast.preset").read_text()
    rules = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert {verb for verb, _ in rules} == {"disable"}
    units = [path.name for path in (CHECKOUT / "systemd").glob("standfast-*.*")]
    for unit in units:
        assert any(fnmatch.fnmatch(unit, pattern) for _, pattern in rules), unit


# What they ask for


def test_a_storage_node_gets_what_the_readme_asks_for() -> None:
    [row] = re.findall(r"(?m)^\| a storage node \| (.*) \|$", (CHECKOUT / "README.md").read_text())
    both = dependencies(STORAGE) | dependencies(CLIENT)
    for word, package in ASKS_FOR.items():
        assert word in row, f"the README doesn't ask for {word} any more"
        assert package in both, package
    known = [*ASKS_FOR, *UP_TO_THE_CLUSTER, "kernel's"]
    for part in re.split(r", | and | or |; |[()]", row):
        if part.strip() and not part.startswith(("later confines", "an older one")):
            assert any(word in part for word in known), f"no package for {part!r}"


def test_a_client_gets_what_the_readme_asks_for_and_no_server() -> None:
    needed = dependencies(CLIENT)
    assert {"nfs-common", "systemd", "mount"} <= needed
    assert not needed & {"nfs-kernel-server", "btrfs-progs", "openssh-server", "nftables"}


def test_both_packages_are_of_one_version_and_of_the_python_that_they_were_built_with() -> None:
    assert "standfast-client (= ${binary:Version})" in fields(STORAGE)["Depends"]
    assert "${standfast:Python}" in fields(CLIENT)["Depends"]
    rules = (DEBIAN / "rules").read_text()
    assert "-V'standfast:Python=python3 (>= $(SERIES)), python3 (<< $(NEXT))'" in rules


def test_the_version_is_the_projects() -> None:
    doc = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    first = (DEBIAN / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"standfast ({doc['project']['version']}) ")


def test_the_licence_of_every_package_of_others_is_named() -> None:
    lock = (CHECKOUT / "requirements-runtime.lock").read_text()
    named = " ".join((DEBIAN / "copyright").read_text().split())
    # An entry with a marker for another system is in no package.
    for name, rest in re.findall(r"(?m)^([a-z0-9-]+)==(.*)$", lock):
        if "win32" not in rest:
            assert f"{name} (" in named, f"debian/copyright says nothing of {name}"


# How they are built


def test_whatever_is_installed_by_hash_is_and_pip_is_in_no_package() -> None:
    recipe = (DEBIAN / "rules").read_text().replace("\\\n", " ")
    installs = [line for line in recipe.splitlines() if "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        assert line.strip().startswith("$(UV) pip install")
        assert "--require-hashes" in line or "--no-deps $(WHEEL)" in line, line
    assert "ensurepip" not in recipe and "-m venv" not in recipe


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_maintainer_script_is_a_strict_shell_script_that_fetches_nothing(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -e\n" in text
    assert text.rstrip().endswith("#DEBHELPER#\n\nexit 0")
    assert not re.search(r"\b(pip3?|uv|python3?|curl|wget|apt(-get)?)\b", text)
    checked = subprocess.run(["sh", "-n", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_there_are_the_scripts_that_are_needed() -> None:
    assert [path.name for path in SCRIPTS] == sorted(
        [f"{package}.{kind}" for package in PACKAGES for kind in ("postinst", "prerm", "postrm")]
        + ["standfast.preinst"]
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_whatever_lintian_is_told_to_overlook_has_its_reason(package: str) -> None:
    text = (DEBIAN / f"{package}.lintian-overrides").read_text()
    assert text.startswith("# ")
    tags = [line.split()[1] for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith(("#", f"{package}: ")) for line in text.splitlines())
    assert "*" not in tags
