"""Exports of this machine's own that get in the way of the volume's: which line of which file.

An export of the volume's own path goes before Standfast's: exportfs takes the first of two lines
for one client, and /etc/exports comes first. One of a directory above is entered by its clients,
which then never come to the volume's export (a subvolume is no mount point: nfsd stays in the
export that it is in); one below is served wherever that server runs, whoever is primary. An export
with `fsid=0` is the root of all paths that clients ask for.

A path that leads to the volume by a symbolic link is not seen: the disk isn't asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from standfast.config.model import Config
from standfast.nfs.exports_file import Entry, entries
from standfast.system.files import read_foreign_text

ETC = Path("/etc")
_IS_ROOT = re.compile(r"(?a)(?:^-|[(,])\s*fsid=(?:root|0[xX]?0*)(?:[,)]|$)")


class Relation(StrEnum):
    """What the export is to the volume's."""

    SAME = "exports it, too"
    ABOVE = "exports {path}, which contains it"
    BELOW = "exports {path}, a part of it"
    ROOT = "makes {path} the root that clients see (fsid=0)"


@dataclass(frozen=True, slots=True)
class ForeignExport:
    """A line that somebody else wrote."""

    file: Path
    line: int
    """Where its path stands, from 1."""
    path: Path
    relation: Relation

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.relation.format(path=self.path)}"


def foreign_exports(texts: Mapping[Path, str], live: Path) -> list[ForeignExport]:
    """Returns the exports that get in the way of `live`'s, by the texts (exports(5)) of files that
    aren't Standfast's."""
    return [
        ForeignExport(file, entry.line, entry.path, relation)
        for file, text in texts.items()
        for entry in entries(text)
        if (relation := _relation(entry, live)) is not None
    ]


def exports_problem(config: Config, etc: Path = ETC) -> str | None:
    """Says which lines get in the way of the volume's export, and what to do; None: none does, or
    they can't be read."""
    named = foreign_here(config, etc)
    return None if not named else f"{', '.join(map(str, named))}: {way_out(config)}"


def foreign_here(config: Config, etc: Path = ETC) -> list[ForeignExport]:
    """Returns those of this machine's files."""
    return foreign_exports(_texts(etc, own_file(config, etc)), config.paths.live)


def way_out(config: Config) -> str:
    """Says what to do about them."""
    return (
        f"only Standfast may export {config.paths.live}; take that out of the file, and run "
        f"`exportfs -ra`"
    )


def own_file(config: Config, etc: Path = ETC) -> Path:
    """Returns where Standfast writes the volume's export."""
    return etc / "exports.d" / f"standfast-{config.volume}.exports"


def plain_export_file(config: Config) -> Path:
    """Returns where `uninstall --keep-serving` leaves the export of a plain server."""
    return own_file(config).with_name(f"{config.volume}.exports")


def files_of_others(etc: Path, own: Path) -> list[Path]:
    """Returns the files that exportfs reads beside `own`, in its order, whether they are there or
    not."""
    others = [path for path in own.parent.glob("[!.]*.exports") if path != own]
    return [etc / "exports", *sorted(others)]


def _texts(etc: Path, own: Path) -> dict[Path, str]:
    texts = {}
    for path in files_of_others(etc, own):
        try:
            texts[path] = read_foreign_text(path)
        except OSError:
            continue  # it isn't there, or exportfs can't read it either
    return texts


def _relation(entry: Entry, live: Path) -> Relation | None:
    path = entry.path
    if path == live:
        return Relation.SAME
    if live.is_relative_to(path):
        return Relation.ABOVE
    if path.is_relative_to(live):
        return Relation.BELOW
    return Relation.ROOT if any(map(_IS_ROOT.search, entry.clients)) else None
