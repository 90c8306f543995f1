"""Tables of the kernel with names of any bytes: each is read back, and hides no other."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from standfast.btrfs import writers_look
from standfast.mounts.processes import fdinfo_of
from standfast.system.files import read_foreign_text
from standfast.system.lines import lines_of, unescaped
from standfast.system.mountinfo import parse_mountinfo
from tests.support.examples import examples

ODD = [b"\r", b"\v", b"\f", b"\x1c", b"\x1f", b" ", b"\t", b"\n", b"\\", b"\\040", b" - ", b"\xe9"]
ODD += [char.encode() for char in ("\x85", "\xa0", "\u2028", "\u2029", "\u3000", "é")]
PIECES = st.one_of(st.sampled_from(ODD), st.binary(min_size=1, max_size=4))
NAMES = st.lists(PIECES, min_size=1, max_size=6).map(
    lambda pieces: b"/" + b"".join(pieces).replace(b"/", b"").replace(b"\0", b"")
)
TABLES = st.lists(NAMES, min_size=1, max_size=5)


def octal(name: bytes, chars: bytes) -> bytes:
    """As the kernel writes a name: mountinfo escapes four characters, maps only the line feed."""
    return re.sub(b"[" + re.escape(chars) + b"]", lambda match: b"\\%03o" % match[0][0], name)


def decoded(names: Sequence[bytes]) -> list[str]:
    return [os.fsdecode(name) for name in names]


@examples(200)
@given(TABLES)
def test_a_file_of_any_lines_is_read_as_it_is(lines: Sequence[bytes]) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(lines) + b"\n")
        file.flush()
        assert lines_of(read_foreign_text(Path(file.name))) == decoded(lines)


@examples(300)
@given(TABLES, st.lists(st.binary(max_size=40), max_size=3), st.randoms(use_true_random=False))
def test_every_mount_is_seen_whatever_lies_between(
    names: Sequence[bytes], junk: Sequence[bytes], chance: random.Random
) -> None:
    escaped = [octal(name, b" \t\n\\") for name in names]
    lines = [
        b"24 1 0:20 %s %s rw,relatime shared:1 - btrfs %s rw,subvol=%s" % (name, name, name, name)
        for name in escaped
    ]
    for line in junk:
        lines.insert(chance.randint(0, len(lines)), line.replace(b"\n", b""))
    mounts = parse_mountinfo(os.fsdecode(b"\n".join(lines) + b"\n"))
    ours = [mount for mount in mounts if mount.device == "0:20" and mount.kind == "btrfs"]
    for told in ("point", "root", "source"):
        assert [getattr(mount, told) for mount in ours] == decoded(names)


@examples(200)
@given(TABLES)
def test_every_file_that_is_mapped_is_seen(names: Sequence[bytes]) -> None:
    line = b"7f0000000000-7f0000001000 rw-s 00000000 00:2a 257                        %s"
    table = b"".join(line % octal(name, b"\n") + b"\n" for name in names)
    other = b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n7f0-7f1 r--p 00 00:00 0   [heap]\n"
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "maps").write_bytes(other + table + other)
        with mock.patch.object(writers_look, "is_of", return_value=True):
            mapped = list(writers_look.mapped(Path(directory), 1, "0:42"))
    assert mapped == decoded([octal(name, b"\n") for name in names])


@examples(100)
@given(TABLES)
def test_nothing_that_a_driver_adds_changes_how_a_file_is_open(names: Sequence[bytes]) -> None:
    said = b"pos:\t0\nflags:\t0100002\nmnt_id:\t25\nino:\t257\n"
    said += b"".join(b"name:\t%s\nflags:\tx%s\n" % (name, name) for name in names)
    fields = fdinfo_of(os.fsdecode(said))
    assert (fields["flags"], fields["mnt_id"]) == ("0100002", "25")


@examples(300)
@given(NAMES)
def test_what_is_escaped_is_read_back(name: bytes) -> None:
    for chars in (b" \t\n\\", bytes({*range(33), *range(127, 256), *b'"\\#'})):
        assert unescaped(os.fsdecode(octal(name, chars))) == os.fsdecode(name)
