"""Two nodes, a and b, whose disks are made for a test and gone after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from standfast.assembly.parts import Parts, use
from standfast.demo.parts import DemoParts
from tests.contract.links import Links
from tests.contract.peers import Peer, lead, peer
from tests.support.volumes import btrfs_on_file, make_live


@contextmanager
def node(place: Path, name: str, kind: str) -> Iterator[Peer]:
    """An empty node."""
    root = place / name
    with ExitStack() as stack:
        if kind == "btrfs":
            stack.enter_context(btrfs_on_file(place / f"{name}.img", root))
        yield peer(root, name, kind, place / "keys.json")


@contextmanager
def primary_and_standby(place: Path, kind: str) -> Iterator[tuple[Peer, Peer]]:
    """a, the primary of epoch 1 with a live tree, and b, an empty standby that it reaches."""
    with ExitStack() as stack:
        if kind == "directory":
            use(DemoParts())  # for the commands that run in this process
            stack.callback(use, Parts())
        a, b = (stack.enter_context(node(place, name, kind)) for name in "ab")
        a.links = b.links = stack.enter_context(Links(place / "links").serve())
        make_live(a.config.paths.live, kind)
        lead(a, 1)
        yield a.talk_to(b), b
