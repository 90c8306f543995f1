"""Two nodes, a and b, whose disks are made for a test and gone after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.contract.peers import Peer, lead, peer
from tests.contract.volumes import btrfs_on_file, make_live


@contextmanager
def node(tmp_path: Path, name: str, kind: str) -> Iterator[Peer]:
    """An empty node."""
    root = tmp_path / name
    with ExitStack() as stack:
        if kind == "btrfs":
            stack.enter_context(btrfs_on_file(tmp_path / f"{name}.img", root))
        yield peer(root, name, kind, tmp_path / "keys.json")


@contextmanager
def primary_and_standby(tmp_path: Path, kind: str) -> Iterator[tuple[Peer, Peer]]:
    """a, the primary of epoch 1 with a live tree, and b, an empty standby that it reaches."""
    with node(tmp_path, "a", kind) as a, node(tmp_path, "b", kind) as b:
        make_live(a.config.paths.live, kind)
        lead(a, 1)
        yield a.talk_to(b), b
