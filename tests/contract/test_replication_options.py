"""What a configuration may ask of a cycle: compression, a limit, a look at the metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.replication import receive_checks, shipment, wire
from standfast.replication.fingerprint import digest_of
from standfast.system.clock import monotonic
from tests.contract.links import LinkFault
from tests.contract.pairs import primary_and_standby
from tests.contract.peers import Peer
from tests.support.volumes import files, require_btrfs


@pytest.fixture
def pair(place: Path) -> Iterator[tuple[Peer, Peer]]:
    require_btrfs()
    with primary_and_standby(place, "btrfs") as pair:
        yield pair


def with_options(peer: Peer, **options: Any) -> Peer:
    replication = structs.replace(peer.config.replication, **options)
    return replace(peer, config=structs.replace(peer.config, replication=replication))


def test_a_compressed_stream_is_smaller_on_the_wire_and_the_same_on_the_disk(
    pair: tuple[Peer, Peer],
) -> None:
    a, b = pair
    a.live("text").write_bytes(b"one line after another\n" * 100_000)
    a = with_options(a, compression="zstd")
    first = a.sender.cycle("b")
    assert first.sent_bytes < 100_000
    a.live("text").write_bytes(b"another line after one\n" * 100_000)
    second = a.sender.cycle("b")
    assert second.parent == str(first.snapshot) and second.sent_bytes < 100_000
    assert files(b.store.snapshots()[-1].path) == files(a.config.paths.live)


def test_a_compressed_stream_that_is_cut_is_refused(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    a.live("noise").write_bytes(os.urandom(3_000_000))
    assert a.links is not None
    a.links.arm(LinkFault("end", stream_bytes=1_000_000))
    with pytest.raises(Refused) as refusal:
        with_options(a, compression="zstd").sender.cycle("b")
    assert refusal.value.reason is Reason.INCOMPLETE
    assert b.published() == [] and list(b.store.unfinished()) == []


def test_a_node_that_can_not_decompress_says_so_before_anything_is_sent(
    pair: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = pair
    name = SnapshotName.parse("services@20270115T080000Z")
    squeezed = wire.Compression.ZSTD
    begin = wire.Begin("test", "v", "a", 1, str(name), "id", None, {}, compression=squeezed)
    receive_checks.check_decompressor(b.config, begin)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refused, match=r'replication\.compression = "none"'):
        receive_checks.check_decompressor(b.config, begin)


def test_a_limit_holds(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    a.live("noise").write_bytes(os.urandom(500_000))
    started = monotonic()
    sent = with_options(a, bandwidth_limit=500_000).sender.cycle("b").sent_bytes
    assert monotonic() - started >= 0.9 * sent / 500_000


def test_with_a_look_at_the_metadata_what_differs_is_not_published(
    pair: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    a.live("f").write_text("one")
    careful = with_options(a, verify="metadata")
    first = careful.sender.cycle("b")
    assert b.published() == [str(first.snapshot)]
    a.live("f").write_text("two")
    monkeypatch.setattr(shipment, "digest_of", lambda *args: digest_of(*args)[::-1])
    with pytest.raises(Refused, match="arrived with other metadata") as refusal:
        careful.sender.cycle("b")
    assert refusal.value.reason is Reason.INCOMPLETE
    assert b.published() == [str(first.snapshot)]


def test_progress_gets_every_byte_and_an_estimate(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    a.live("noise").write_bytes(os.urandom(3_000_000))
    told: list[tuple[int, int | None]] = []
    sent = a.sender.cycle("b", on_progress=lambda moved, total: told.append((moved, total)))
    assert sum(moved for moved, _ in told) == sent.sent_bytes
    totals = {total for _, total in told}
    assert len(totals) == 1
    [total] = totals
    assert total is not None and abs(total - 3_000_000) < 100_000
