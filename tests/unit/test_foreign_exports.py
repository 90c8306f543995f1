from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.config.model import Config
from standfast.nfs.foreign_exports import (
    Relation,
    exports_problem,
    files_of_others,
    foreign_exports,
    own_file,
)
from standfast.nfs.kernel import escaped
from tests.support.configs import config_in

LIVE = Path("/persist/my services")
EXPORTS = Path("/etc/exports")


def seen(text: str, live: Path = LIVE) -> list[tuple[int, str, Relation]]:
    exports = foreign_exports({EXPORTS: text}, live)
    assert {export.file for export in exports} <= {EXPORTS}
    return [(export.line, str(export.path), export.relation) for export in exports]


@pytest.mark.parametrize(
    "line",
    [
        "/persist/my\\040services c9(rw)",
        '"/persist/my services" c9(rw)',
        '/persist/"my services"\tc9(rw)',
        "  /persist/my\\040services/ *",
        "/persist//my\\040services -rw,sync c9 c8(ro)",
        "/persist/my\\040services \\\n   c9(rw) \\\n   c8(rw)",
        "/persist/x/../my\\040services c9(rw)",
        "//persist/./my\\040services// c9(rw)",
        '"/persist/my\\\n  services" c9(rw)',
        "/persist/my\\134040services c9(rw)",
        "/persist/my\\040services\vc9(rw)",
        "/persist/my\\040services\\000x c9(rw)",
    ],
)
def test_an_export_of_the_volumes_path_is_seen_however_it_is_written(line: str) -> None:
    expected = (2, "/persist/my services", Relation.SAME)
    assert seen(f"# a comment \\\n{line}\n/else c9(rw)\n") == [expected]


def test_what_a_blank_of_another_kind_begins_is_told_with_its_line() -> None:
    """As exportfs of nfs-utils 2.6.2 read them."""
    same = "/persist/my services", Relation.SAME
    assert seen("/else c9(rw) \r/persist/my\\040services c9(rw)\n") == [(1, *same)]
    assert seen('"/else\n1" c9 # c8\n\n"/persist/my services" \\\n') == [(4, *same)]


def test_of_a_path_of_any_bytes_and_of_one_that_we_escape() -> None:
    live = Path(os.fsdecode(b'/persist/caf\xe9 #1\\"x'))
    assert [line for line, _, _ in seen(f"\n\n{escaped(live)} c9(rw)\n", live)] == [3]
    assert [line for line, _, _ in seen(f"{live.parent}/caf\\3511 c9\n", live)] == []


@pytest.mark.parametrize(
    ("line", "relation"),
    [
        ("/persist *(rw)", Relation.ABOVE),
        ("/ *(fsid=0,crossmnt)", Relation.ABOVE),
        ("/persist/my\\040services/web *(ro)", Relation.BELOW),
        ("/srv/nfs4 *(ro,fsid=0)", Relation.ROOT),
        ("/srv/nfs4 -fsid=root,ro c9 c8", Relation.ROOT),
        ("/srv/nfs4 c9(ro) c8(fsid=0x0)", Relation.ROOT),
    ],
)
def test_what_else_gets_in_the_way_of_it(line: str, relation: Relation) -> None:
    [(number, _, seen_relation)] = seen(f"/else c9\n{line}\n")
    assert (number, seen_relation) == (2, relation)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# /persist/my\\040services c9(rw)",
        "/persist/my c9(rw)\n/persist/my\\040services2 c9\n/per c9",
        "/else c9(rw,fsid=0a3bc2d1)\n/more c9(fsid=10)",
        "/else \\\n/persist c9(rw)",
        "c9(rw) \\",
        "/persist/my\\040services#old c9(rw)",
        '"/persist/my services#old" c9(rw)',
        "/persist/my\\040services\u00a0old c9(rw)",
        "/persist/my\\040services\u2028x c9(rw)",
        "/persist/my\\040services\x1cold c9(rw)",
        "/persist/my\\040services\x85 c9(rw)",
        "/persist/my\\040services/../x c9(rw)",
        "/persist/my\\4040services c9(rw)",
        "/else c9(rw) # \\\n/more c9(rw) # /persist\n#/persist c9",
        "/else c9(fsid=01,mp=/fsid=0) fsid=0",
        "/else c9(rw)\r\n\r\n/persist/my\\040services c9(rw)",
    ],
)
def test_what_concerns_others_alone_is_left_to_them(text: str) -> None:
    assert seen(text) == []


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = config_in(tmp_path)
    return replace(config, paths=replace(config.paths, live=LIVE))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_each_line_is_named_with_its_file_and_what_to_do(config: Config, tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    assert exports_problem(config, etc) is None, "no file at all"
    own = write(own_file(config, etc), f"{escaped(LIVE)} c9(rw)\n")
    write(etc / "exports.d/standfast-other.exports", "/else *(rw)\n")
    assert exports_problem(config, etc) is None, "only what Standfast wrote"
    old = write(etc / "exports", f"# old\n{escaped(LIVE)} c9(rw)\n")
    backup = write(etc / "exports.d/backup.exports", "/persist c8(ro)\n")
    assert exports_problem(config, etc) == (
        f"{old}:2 exports it, too, {backup}:1 exports /persist, which contains it: only Standfast "
        f"may export {LIVE}; take that out of the file, and run `exportfs -ra`"
    )
    assert own.exists()


def test_only_what_exportfs_reads_counts(config: Config, tmp_path: Path) -> None:
    line = f"{escaped(LIVE)} c9(rw)\n"
    for name in ("old.exports.bak", ".old.exports", "exports"):
        write(tmp_path / "exports.d" / name, line)
    (tmp_path / "exports").mkdir()
    assert exports_problem(config, tmp_path) is None
    others = files_of_others(tmp_path, own_file(config, tmp_path))
    assert others == [tmp_path / "exports"]
