"""A tree of files as a stream: what `btrfs send` and `btrfs receive` are for the directory store.

    directory_stream send TREE CONTENT_ID [PARENT_CONTENT_ID]   > stream
    directory_stream receive STAGING                            < stream

The stream is a line of JSON, a tar archive in frames (4 bytes of length, then data) and an empty
frame, the end mark. Received is whole or nothing: the tree's identity is written only after the
end mark was read. A stream cut anywhere ends with status 1, as with btrfs.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tarfile
import uuid
from pathlib import Path, PurePosixPath
from typing import IO, Any

from standfast.btrfs.names_and_places import TreeInfo
from standfast.demo.stand_ins.directory import save_info

MAGIC = "standfast-tree"
_FRAME = struct.Struct(">I")
_MAX_FRAME = 1 << 20
_MAX_HEADER = 4096
_MTIME = "STANDFAST.mtime_ns"  # tarfile's own are floating-point numbers, which lose digits


class Frames(io.RawIOBase):
    """The framed part of a stream, to be read or written as a plain one."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = 0
        self.ended = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _MAX_FRAME):
            piece = view[start : start + _MAX_FRAME]
            self._stream.write(_FRAME.pack(len(piece)))
            self._stream.write(piece)
        return len(view)

    def end(self) -> None:
        """Writes the end mark."""
        self._stream.write(_FRAME.pack(0))
        self._stream.flush()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left == 0 and not self.ended:
            (self._left,) = _FRAME.unpack(self._exactly(_FRAME.size))
            self.ended = self._left == 0
            if self._left > _MAX_FRAME:
                raise ValueError(f"a frame of {self._left} bytes is not ours")
        if self.ended:
            return 0
        data = self._exactly(min(self._left, len(buffer)))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError("unexpected end of the stream")
        return data


def send(tree: Path, content_id: str, parent: str | None, out: IO[bytes]) -> None:
    header = {"format": MAGIC, "name": tree.name, "content_id": content_id, "parent": parent}
    out.write(json.dumps(header).encode() + b"\n")
    frames = Frames(out)
    with tarfile.open(fileobj=frames, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tree, arcname=".", filter=lambda member: _with_mtime(member, tree))
    frames.end()


def _with_mtime(member: tarfile.TarInfo, tree: Path) -> tarfile.TarInfo:
    member.pax_headers = {_MTIME: str((tree / member.name).lstat().st_mtime_ns)}
    return member


def receive(staging: Path, source: IO[bytes]) -> None:
    """ValueError, EOFError or tarfile.TarError when the stream is not one, or not whole."""
    header = json.loads(source.readline(_MAX_HEADER))
    name = str(header["name"])
    if header["format"] != MAGIC or name != Path(name).name or name in ("", ".", ".."):
        raise ValueError(f"not a stream of a directory volume: {header!r}")
    tree = staging / name
    tree.mkdir()
    frames = Frames(source)
    with tarfile.open(fileobj=frames, mode="r|") as archive:
        # Refused below, also where tarfile (before 3.11.4) has no filters.
        archive.extraction_filter = lambda member, _: member
        directories = []
        for member in archive:
            _refuse_harmful(member, tree)
            archive.extract(member, tree, set_attrs=not member.isdir())
            if member.isdir():
                directories.append(member)
            else:
                _set_mtime(member, tree)
        for member in reversed(directories):  # only now: a read-only one can't be filled
            archive.chmod(member, tree / member.name)
            _set_mtime(member, tree)
    while frames.read(_MAX_FRAME):
        pass  # the archive's padding
    if source.read(1):
        raise ValueError("something follows the end of the stream")
    received = str(header["content_id"])
    save_info(tree, TreeInfo(str(uuid.uuid4()), received, read_only=True))


def _set_mtime(member: tarfile.TarInfo, tree: Path) -> None:
    mtime_ns = int(member.pax_headers.get(_MTIME, int(member.mtime) * 10**9))
    os.utime(tree / member.name, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def _refuse_harmful(member: tarfile.TarInfo, tree: Path) -> None:
    """ValueError for a member that would be written, or would reach, outside the tree."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ValueError(f"{member.name!r} is neither a file nor a directory nor a link")
    for name in (member.name, member.linkname) if member.islnk() else (member.name,):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name!r} leads out of the tree")
        # An earlier member may have been a symbolic link to elsewhere.
        if any((tree / parent).is_symlink() for parent in path.parents):
            raise ValueError(f"{name!r} goes through a symbolic link")
    target = tree / member.name
    if os.path.lexists(target) and not (member.isdir() and not target.is_symlink()):
        raise ValueError(f"{member.name!r} comes twice")


def main(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["send"] and len(arguments) in (3, 4):
            parent = arguments[3] if len(arguments) == 4 else None
            send(Path(arguments[1]), arguments[2], parent, sys.stdout.buffer)
        elif arguments[:1] == ["receive"] and len(arguments) == 2:
            receive(Path(arguments[1]), sys.stdin.buffer)
        else:
            print("usage: send TREE CONTENT_ID [PARENT] | receive STAGING", file=sys.stderr)  # noqa: T201
            return 2
    except (OSError, ValueError, KeyError, TypeError, EOFError, tarfile.TarError) as error:
        print(f"directory stream: {error!r}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
