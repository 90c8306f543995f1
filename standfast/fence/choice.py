"""Which fence a node has: the backend that is configured or that its kernel offers, and whether the
rules in place were made for what is configured.

Invariant: all processes of a node choose alike, from one boot to the next.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from standfast.config.model import Config
from standfast.fence.claims import Claims
from standfast.fence.ipset import IpsetFence, ipset_installed
from standfast.fence.kernel import BUILD_S, KernelFence
from standfast.fence.made_for import MadeFor, refusal
from standfast.fence.nftables import NftFence, nft_works
from standfast.node.ports import Fence, NfsServer
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text, write_atomically


def fence_from(config: Config) -> Fence:
    """Returns the fence that the configuration names; `auto` is nftables where it works, else
    ipset."""
    directory = config.paths.run / "fence"
    backend = config.fence.backend
    if backend == "auto":
        backend = _chosen(directory)
    return _by(backend, config.nfs.port, directory, config.volume)


def _chosen(directory: Path) -> str:
    """Returns what `auto` means on this machine: decided once a boot, the same for every
    process."""
    path = directory / "backend"
    with contextlib.suppress(OSError):
        known = read_foreign_text(path).strip()
        if known in ("nftables", "ipset"):
            return known
    backend = "ipset" if not nft_works() and ipset_installed() else "nftables"
    with contextlib.suppress(OSError):  # without root nothing can be fenced anyway
        write_atomically(path, backend)
    return backend


def _by(backend: str, port: int, directory: Path, volume: str) -> KernelFence:
    return (IpsetFence if backend == "ipset" else NftFence)(port, directory, volume)


def settle(config: Config, fence: Fence, nfs: NfsServer) -> None:
    """Makes sure, at a process's start and before it touches the rules, that they are made for
    what it is configured for. InvalidConfig while a server may need those that are there.

    A server is started with a claim only, so without claims and without a server there is none on
    its way either. What the rules are for is noted between taking the old ones away and putting up
    the new ones: cut off anywhere, there is no server, and who goes on puts up what is noted.
    """
    if not isinstance(fence, KernelFence):
        return  # the demonstration's: each port has a file of its own
    directory, own = fence.claims.directory, fence.made_for
    if MadeFor.load(directory) == own:
        return  # waits for nobody
    deadline = Deadline.after(BUILD_S)
    with fence.claims.alone(deadline):
        known = MadeFor.load(directory)
        if known is None:
            own.save(directory)  # the rules that are there, if any, are of this or an older version
        elif known != own:
            why = _in_use(fence.claims, nfs)
            if why is not None:
                raise refusal(config, directory, known, own, why)
            same = known.backend == own.backend
            old = fence if same else _by(known.backend, known.port, directory, config.volume)
            old.remove(deadline)
            own.save(directory)
            fence._build(deadline)


def take_away(config: Config, deadline: Deadline) -> None:
    """Takes the node's rules away for good, and what is noted of them: the port is open then,
    whoever listens there. For a node that is to be without this program."""
    fence = fence_from(config)
    if not isinstance(fence, KernelFence):
        return
    directory = fence.claims.directory
    with fence.claims.alone(deadline):
        known = MadeFor.load(directory) or fence.made_for
        _by(known.backend, known.port, directory, config.volume).remove(deadline)
    shutil.rmtree(directory, ignore_errors=True)


def _in_use(claims: Claims, nfs: NfsServer) -> str | None:
    if holders := claims.holders():
        return f"{', '.join(holders)} is exported here"
    return "an NFS server runs here" if nfs.is_running() else None


def check_settled(config: Config, fence: Fence) -> None:
    """Raises InvalidConfig when the rules are made for something else; for who starts a server and
    puts up none."""
    if isinstance(fence, KernelFence):
        known = MadeFor.load(fence.claims.directory)
        if known not in (None, fence.made_for):
            why = "only a start of the agent or the lease process changes it, with nothing served"
            raise refusal(config, fence.claims.directory, known, fence.made_for, why)
