"""What an installation brings along: a virtual environment, a package of the distribution, both."""

from __future__ import annotations

from pathlib import Path

import pytest

from standfast.errors import StandfastError
from standfast.setup import shipped
from standfast.setup.shipped import GUARD, NAMES, Places
from tests.support.checkout import CHECKOUT


def put(root: Path, path: str, text: str = "x\n") -> Path:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return target


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A virtual environment at /opt/standfast of a machine that is a directory."""
    root = tmp_path / "root"
    prefix = root / "opt/standfast"
    for path in sorted((CHECKOUT / "systemd").rglob("*")):
        if path.is_file():
            name = path.relative_to(CHECKOUT / "systemd")
            put(prefix, f"share/standfast/systemd/{name}", path.read_text())
    for program in NAMES:
        put(prefix, f"bin/{program}")
    put(prefix, "share/man/man1/standfast.1", "page\n")
    put(prefix, "share/man/man1/other.1", "of a library\n")
    put(prefix, "share/zsh/site-functions/_standfast", "zsh\n")
    return Places(root, prefix)


def test_a_virtual_environment_is_where_nobody_looks(places: Places) -> None:
    found = shipped.look(places)
    assert set(found.programs) == set(NAMES)
    assert found.pages == {
        Path("/usr/local/share/man/man1/standfast.1"): "page\n",
        Path("/usr/local/share/zsh/site-functions/_standfast"): "zsh\n",
    }
    assert GUARD in found.units and "standfast.catalog" not in found.units
    assert found.catalog and not found.by_package


def test_the_own_links_are_no_reason_to_leave_them_out(places: Places) -> None:
    local = places.root / "usr/local/bin"
    local.mkdir(parents=True)
    for name in NAMES:
        (local / name).symlink_to(places.prefix / "bin" / name)
    assert set(shipped.look(places).programs) == set(NAMES)


def test_programs_that_systemd_finds_are_not_linked_again(places: Places) -> None:
    """As a package has them: links in /usr/bin to its own environment."""
    usr = places.root / "usr/bin"
    usr.mkdir(parents=True)
    for name in NAMES:
        (usr / name).symlink_to(places.prefix / "bin" / name)
    assert shipped.look(places).programs == {}
    put(places.root, "/usr/share/man/man1/standfast.1.gz")
    assert list(shipped.look(places).pages) == [
        Path("/usr/local/share/zsh/site-functions/_standfast")
    ]


def test_units_of_a_package_are_known_by_their_place(places: Places) -> None:
    put(places.root, "/usr/lib/systemd/system/standfast-agent@.service")
    put(places.root, f"/lib/systemd/system/{GUARD}")
    assert shipped.look(places).by_package == {"standfast-agent@.service", GUARD}


def test_a_package_without_a_copy_of_its_units_is_read_where_they_are(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Places(places.root, places.root / "usr/lib/standfast")
    monkeypatch.setattr(shipped, "__file__", str(places.root / "a/b/c.py"))
    with pytest.raises(StandfastError, match="install Standfast again"):
        shipped.look(elsewhere)
    put(places.root, "/usr/lib/systemd/system/standfast-watch@.service", "[Unit]\n")
    put(places.root, "/usr/lib/systemd/system/ssh.service", "[Unit]\n")
    found = shipped.look(elsewhere)
    assert dict(found.units) == {"standfast-watch@.service": "[Unit]\n"}
    assert found.by_package == {"standfast-watch@.service"}
