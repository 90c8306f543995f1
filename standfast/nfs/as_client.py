"""Whether a client would be served: the NFS server is asked as a client asks it.

A NULL call is answered by a thread of the kernel alone. Everything else takes rpc.mountd: when the
kernel's caches don't know a client or a file system any more (after half an hour, or an
`exportfs -f`), they ask it, and whoever waits for the answer hangs. So it is made to answer:

- The cache of clients (auth.unix.ip) is keyed by their address. A call from an address of
  127.0.0.0/8 that nobody had before asks mountd, and what mountd says is no matter: where loopback
  may not mount anything, the kernel denies the call, which is an answer.
- It is one of mountd's only while the cache has a writer: 30 s after the last one closed the
  channel (cache_listeners_exist in net/sunrpc/cache.c) the kernel denies by itself whoever it
  doesn't know. So the channel is held open for writing meanwhile, and nothing is written. With
  mountd dead this has a good side: new clients wait for the failover instead of being refused.
- Where an export is for names with wildcards or for a netgroup, mountd asks DNS for the name of
  each new address, and would hang with a DNS that is away: an address that it knows is used there.

Then the exported path is looked up and its fsid read, from an address that may mount it: this
node's own, else 127.0.0.1. It has to be this epoch's. Where neither is a client by its address, the
way to the export isn't asked for. An export with another security than `sys` alone is answered by
that word. What is on that way changes by somebody's hand alone, and mountd writes two lines about
each client: while it is well it is looked at once a minute.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.nfs.compound import EMPTY, MOST_NAMES, WRONG_SECURITY, OperationFailed, fsid_at
from standfast.nfs.rpc import COMPOUND, NULL, Denied, NotHere, connected
from standfast.system.clock import Deadline, monotonic
from standfast.system.lines import fields_of, lines_of

LOOPBACK = "127.0.0.1"
LOOK_UP_EVERY_S = 60.0
CHANNEL = Path("/proc/net/rpc/auth.unix.ip/channel")
MOUNTD = "nfs-mountd.service"


class MountdSilent(StandfastError):
    """The kernel answers, and mountd doesn't answer the kernel."""


def ask_mountd(
    port: int, deadline: Deadline, *, fresh: bool = True, channel: Path = CHANNEL
) -> None:
    """Returns when mountd has answered the kernel. MountdSilent, or StandfastError when the server
    itself doesn't answer. `fresh`: by an address that it doesn't know."""
    source = fresh_address() if fresh else LOOPBACK
    with _written_to(channel), connected(LOOPBACK, port, deadline, source) as server:
        server.call(NULL)
        try:
            server.call(COMPOUND, EMPTY)
        except Denied:
            return
        except StandfastError as error:
            raise MountdSilent(
                f"rpc.mountd doesn't answer the kernel, so that clients hang as soon as they are "
                f"not known any more: see `systemctl status {MOUNTD}` ({error})"
            ) from error


class LooksUp:
    """Remembers for a while that the way to the export was well."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._well: tuple[str, float] | None = None
        """The fsid, and when (monotonic)."""

    def problem(self, fsid: str, deadline: Deadline) -> str | None:
        """Says why a client wouldn't get this epoch's tree, as `look_up`, or was seen to lately."""
        if self._well is not None:
            known, at = self._well
            if known == fsid and monotonic() - at < LOOK_UP_EVERY_S:
                return None
        problem = look_up(self._config, fsid, deadline)
        self._well = (fsid, monotonic()) if problem is None else None
        return problem


def look_up(config: Config, fsid: str, deadline: Deadline) -> str | None:
    """Says why a client wouldn't get this epoch's tree at the exported path; None: it would, or
    nobody here may ask."""
    names, source = config.paths.live.parts[1:], own_source(config)
    if source is None or len(names) > MOST_NAMES:
        return None
    try:
        with connected(source, config.nfs.port, deadline, source) as server:
            seen = fsid_at(server, names)
    except NotHere:  # clients reach this node by an address that isn't its own
        return None
    except OperationFailed as error:
        return None if error.status == WRONG_SECURITY else str(error)
    except StandfastError as error:
        return str(error)
    if seen == UUID(fsid):
        return None
    return f"a client gets another tree at {config.paths.live} than this epoch's (fsid {seen})"


def own_source(config: Config) -> str | None:
    """Returns the address from which this node may mount the volume; None: none that is known."""
    mine = (config.me.address, LOOPBACK)
    return next((address for address in mine if admits(config.nfs.clients, address)), None)


def admits(clients: Sequence[str], address: str) -> bool:
    """Tells whether the clients of an export have this address among them by address or network.

    What a name stands for isn't asked.
    """
    try:
        asked = ipaddress.ip_address(address)
    except ValueError:
        return False
    for client in clients:
        if client == "*":
            return True
        with contextlib.suppress(ValueError):
            if asked in ipaddress.ip_network(client, strict=False):
                return True
    return False


def asks_for_names(table: str) -> bool:
    """Tells whether an export of the table (etab) is for clients that mountd knows by DNS alone."""
    clients = (word.partition("(")[0] for line in lines_of(table) for word in fields_of(line)[1:])
    return any(client != "*" and set("*?[@") & set(client) for client in clients)


def fresh_address() -> str:
    """Returns one of loopback that most likely nobody had in the last half hour."""
    # Those of 127.0.0.0/16 are used by programs; 0 and 255 at the end look like networks.
    second, third, last = secrets.randbelow(254), secrets.randbelow(256), secrets.randbelow(254)
    return f"127.{second + 1}.{third}.{last + 1}"


@contextlib.contextmanager
def _written_to(channel: Path) -> Iterator[None]:
    """Holds the channel open as a writer does."""
    try:
        descriptor = os.open(channel, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the server that answers isn't this kernel's
        yield
        return
    except OSError as error:
        raise StandfastError(f"{channel} can't be opened: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(descriptor)
