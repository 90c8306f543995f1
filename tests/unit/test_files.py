"""Our own small files: whole or as before; on a full disk, too, where the way back needs it."""

from __future__ import annotations

import ast
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from standfast.errors import is_lack_of
from standfast.lease.epochs import EpochFile
from standfast.lease.files import boot_instance
from standfast.node.own_epoch import Intent, OwnEpoch, Stage
from standfast.system import files
from standfast.system.files import (
    RESERVE,
    RESERVE_BYTES,
    RESERVE_FILES,
    keep_reserve,
    read_foreign_text,
    write_atomically,
)
from standfast.system.locks import exclusive, is_locked
from tests.support.checkout import CHECKOUT

OWN = OwnEpoch(4, Stage.READY, "fsid", None, in_place=True)


def fill(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
    """From now on nothing new has room; what is there can be written over."""
    real = os.open

    def full(path: Any, flags: int, *args: Any, **words: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags, *args, **words)

    monkeypatch.setattr(os, "open", full)


def spares(directory: Path) -> int:
    return len(list((directory / RESERVE).iterdir()))


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"x\.json") as raised:
        write_atomically(path, "new", durable=True)
    assert raised.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_the_way_back_is_written_into_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    keep_reserve(tmp_path)
    EpochFile(tmp_path / "epoch").raise_to(3)
    fill(monkeypatch, code)
    OWN.save(tmp_path)
    assert OwnEpoch.load(tmp_path) == OWN
    OWN.at(Stage.DRAINING).save(tmp_path)
    assert OwnEpoch.load(tmp_path) == OWN.at(Stage.DRAINING)
    Intent(5, None, None, in_place=True).save(tmp_path)
    assert Intent.load(tmp_path, 5) is not None
    assert spares(tmp_path) == RESERVE_FILES - 3
    monkeypatch.undo()
    keep_reserve(tmp_path)
    assert spares(tmp_path) == RESERVE_FILES


def test_the_reserve_grows_with_the_files_that_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some hundred snapshots are noted in more than the least that a spare has."""
    keep_reserve(tmp_path)
    noted = "x" * (RESERVE_BYTES + 4096)
    write_atomically(tmp_path / "published.json", noted)
    keep_reserve(tmp_path)
    sizes = {path.stat().st_size for path in (tmp_path / RESERVE).iterdir()}
    assert spares(tmp_path) == RESERVE_FILES and min(sizes) >= 2 * len(noted)
    fill(monkeypatch)
    write_atomically(tmp_path / "published.json", noted.replace("x", "y"), reserved=True)
    assert (tmp_path / "published.json").read_text() == noted.replace("x", "y")


def test_what_is_large_is_written_into_the_spare_that_has_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk was full before the others could grow."""
    keep_reserve(tmp_path)
    sizes = {"2": 5000, "3": 9000}
    for spare in (tmp_path / RESERVE).iterdir():
        os.truncate(spare, sizes.get(spare.name, 10))
    taken: list[int] = []
    written = files._write

    def write(path: Path, text: str, flags: int, *, durable: bool, mode: int) -> None:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(path.stat().st_size)
        written(path, text, flags, durable=durable, mode=mode)

    monkeypatch.setattr(files, "_write", write)
    write_atomically(tmp_path / "published.json", "x" * 4000, reserved=True)
    write_atomically(tmp_path / "own-epoch.json", "short", reserved=True)
    write_atomically(tmp_path / "published.json", "x" * 20_000, reserved=True)
    assert taken == [5000, 10, 9000], "the smallest that has it, else the largest"


def test_other_files_leave_the_reserve_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_reserve(tmp_path)
    fill(monkeypatch)
    with pytest.raises(OSError, match="replication"):
        write_atomically(tmp_path / "replication.json", "x", durable=True)
    assert spares(tmp_path) == RESERVE_FILES


def test_a_reserve_that_is_used_up_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_reserve(tmp_path)
    fill(monkeypatch)
    for _ in range(RESERVE_FILES):
        OWN.save(tmp_path)
    with pytest.raises(OSError, match=r"reserve is used up.*own-epoch\.json") as raised:
        OWN.at(Stage.DRAINING).save(tmp_path)
    assert is_lack_of(raised.value, errno.ENOSPC)
    assert OwnEpoch.load(tmp_path) == OWN


def test_another_trouble_than_a_full_disk_is_no_case_for_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_reserve(tmp_path)
    fill(monkeypatch, errno.EROFS)
    with pytest.raises(OSError, match="Read-only"):
        OWN.save(tmp_path)
    assert spares(tmp_path) == RESERVE_FILES


def test_the_reserve_has_its_room(tmp_path: Path) -> None:
    keep_reserve(tmp_path)
    for spare in (tmp_path / RESERVE).iterdir():
        assert spare.stat().st_blocks * 512 >= RESERVE_BYTES
    assert RESERVE_BYTES > 4096


def test_what_is_in_the_reserve_never_shows_behind_a_shorter_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_reserve(tmp_path)
    fill(monkeypatch)
    write_atomically(tmp_path / "x", "short", reserved=True, mode=0o600)
    assert (tmp_path / "x").read_bytes() == b"short"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_names_of_any_bytes_come_back_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(b"/mnt/caf\xe9\n")
    [line] = read_foreign_text(path).splitlines()
    assert os.fsencode(line) == b"/mnt/caf\xe9"


# Names that somebody else has planted: a directory may be another user's, as node_exporter's is


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("pid", [True, False], ids=["the pid", "the random part"])
def test_no_planted_link_is_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: Path, pid: bool
) -> None:
    if not pid:
        monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    guess = os.getpid() if pid else "guessed"
    for name in ("x.prom", "instance"):
        (tmp_path / f".{name}.{guess}").symlink_to(victim)
    if pid:
        write_atomically(tmp_path / "x.prom", "new")
        assert (tmp_path / "x.prom").read_text() == "new"
        assert boot_instance(tmp_path)
    else:
        with pytest.raises(FileExistsError):
            write_atomically(tmp_path / "x.prom", "new")
        with pytest.raises(FileExistsError):
            boot_instance(tmp_path)
    assert victim.read_text() == "precious"


def test_a_link_in_place_of_the_file_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "x.prom").symlink_to(victim)
    write_atomically(tmp_path / "x.prom", "new")
    assert not (tmp_path / "x.prom").is_symlink()
    assert victim.read_text() == "precious"


def test_a_spare_that_is_a_link_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: Path
) -> None:
    keep_reserve(tmp_path)
    for spare in (tmp_path / RESERVE).iterdir():
        spare.unlink()
        spare.symlink_to(victim)
    fill(monkeypatch)
    with pytest.raises(OSError, match="symbolic links"):
        OWN.save(tmp_path)
    assert victim.read_text() == "precious"


def test_a_lock_is_no_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "x.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"), exclusive(tmp_path / "x.lock", "x"):
        pass
    with pytest.raises(OSError, match="symbolic links"):
        is_locked(tmp_path / "x.lock")


KERNEL_S = {"lease/cutoff.py: write_text", "nfs/kernel.py: write_text"}
"""Files of /proc, where nobody makes a link."""
THE_DEMO_S = {"system/run.py: open"}


def writers(path: Path) -> Iterator[str]:
    """What in a module opens a file for writing by a name, and would follow a link."""
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            text = ast.unparse(function)
            if "os.O_CREAT" in text and "O_NOFOLLOW" not in text:
                yield "os.open"
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        name = call.func.id if isinstance(call.func, ast.Name) else name
        if name in ("write_text", "write_bytes", "touch", "NamedTemporaryFile", "mktemp"):
            yield name
        modes = [word.value for word in call.args if isinstance(word, ast.Constant)]
        if name == "open" and any(
            isinstance(mode, str) and set(mode) & set("wax") for mode in modes
        ):
            yield name


def test_what_is_written_is_written_through_this_door() -> None:
    product = CHECKOUT / "standfast"
    found = {
        f"{path.relative_to(product)}: {what}"
        for path in product.rglob("*.py")
        if "demo" not in path.relative_to(product).parts
        for what in writers(path)
    }
    assert found == KERNEL_S | THE_DEMO_S
