"""Reading send streams, whole and broken."""

from __future__ import annotations

import io
import uuid

import pytest

from standfast.btrfs import stream as btrfs_stream
from tests.support import btrfs_streams as made

IDENTITY = uuid.UUID(int=7)


def outline(*lengths: int) -> bytes:
    pieces = [
        made.command(
            btrfs_stream.UPDATE_EXTENT,
            {
                btrfs_stream.PATH: b"dir/file",
                btrfs_stream.FILE_OFFSET: made.number(0),
                btrfs_stream.SIZE: made.number(length),
            },
        )
        for length in lengths
    ]
    return made.header() + made.subvolume("s", IDENTITY) + b"".join(pieces) + made.end()


def size(stream: bytes) -> int:
    return btrfs_stream.size_from_outline(io.BytesIO(stream))


def test_the_size_is_that_of_the_outline_and_of_the_data_left_out() -> None:
    assert size(outline()) == len(outline())
    assert size(outline(4096, 2**40)) == len(outline(1, 1)) + 4096 + 2**40


def test_commands_and_their_attributes_are_read() -> None:
    stream = io.BytesIO(made.header() + made.subvolume("s", IDENTITY) + made.end() + b"more")
    first, last = btrfs_stream.commands(stream)
    assert first.kind == btrfs_stream.SUBVOL and last == (btrfs_stream.END, b"")
    assert btrfs_stream.attribute(first.body, btrfs_stream.PATH) == b"s"
    assert btrfs_stream.attribute(first.body, btrfs_stream.UUID) == IDENTITY.bytes
    assert btrfs_stream.attribute(first.body, btrfs_stream.SIZE) is None
    assert stream.read() == b"more"


def test_a_stream_cut_anywhere_has_no_size() -> None:
    whole = outline(100)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="ends before"):
            size(whole[:length])


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"PK\3\4" + bytes(100), "begins with"),
        (made.header(4), "version 4"),
        (made.header() + b"\xff" * 20, "4294967295 bytes"),
        (made.header() + made.command(btrfs_stream.UPDATE_EXTENT) + made.end(), "no length"),
        (
            made.header()
            + made.command(btrfs_stream.UPDATE_EXTENT, {btrfs_stream.SIZE: b"1"})
            + made.end(),
            "no length",
        ),
    ],
)
def test_what_is_no_stream_is_an_error(stream: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        size(stream)
