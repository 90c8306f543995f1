"""What setup has put on this node, in `installed.json` of the state directory: uninstall takes that
away again, and nothing else.

Invariant: a file is noted before it is written, with what it is to hold; one that holds something
else now is somebody else's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from standfast.errors import StandfastError
from standfast.system.files import read_struct, write_struct

NAME = "installed.json"


class Installed(Struct, frozen=True):
    """Paths are as the machine has them."""

    files: dict[str, str] = field(default_factory=dict)
    """Each file with the SHA-256 of what was written."""
    links: dict[str, str] = field(default_factory=dict)
    """Each symbolic link with where it leads."""
    directories: tuple[str, ...] = ()
    """Those that were made."""
    was_enabled: tuple[str, ...] = ()
    """Units that were enabled before."""
    restart: bool = False
    """What runs may have begun before the configuration or the units were replaced."""

    @classmethod
    def load(cls, path: Path) -> Installed:
        """Returns what is noted; nothing where there is no file. StandfastError when it can't be
        understood."""
        return read_struct(path, cls) or cls()

    def save(self, path: Path) -> None:
        write_struct(path, self, durable=True)

    def with_files(self, texts: Mapping[Path, str]) -> Installed:
        noted = {str(path): digest(text) for path, text in texts.items()}
        return replace(self, files=self.files | noted)

    def without_files(self, paths: tuple[Path, ...]) -> Installed:
        gone = set(map(str, paths))
        kept = {path: what for path, what in self.files.items() if path not in gone}
        return replace(self, files=kept)

    def wrote(self, path: Path, text: str) -> bool:
        """Tells whether the file's content `text` is what setup wrote there."""
        return self.files.get(str(path)) == digest(text)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def readable(path: Path) -> Installed:
    """Returns the record, or nothing where it is damaged: then only what is as it was shipped
    counts as ours."""
    try:
        return Installed.load(path)
    except StandfastError:
        return Installed()
