"""What nfs.conf has nfsd do, as far as the volume would not be served then: asked before it starts.

nfsconf says it, by which nfsd's own programs read the file; without it nothing is known. What is
written before each start (`state.settings`) isn't asked for: RDMA, NFS 3 and 4.0.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.nfs.as_client import LOOPBACK, own_source
from standfast.node.obstacle import Obstacle, Weight
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text
from standfast.system.lines import lines_of
from standfast.system.probe import is_ours
from standfast.system.run import run
from standfast.system.threads import Question

ETC = Path("/etc")
RESOLVE_S = 5.0
OFF = ("0", "f", "false", "n", "no", "off")
"""As conf_get_bool of nfs-utils has it."""


@dataclass(frozen=True, slots=True)
class NfsConf:
    """The section [nfsd]."""

    etc: Path = ETC
    owns: Callable[[str], bool] = is_ours
    """Tells whether this node has an address."""

    def setting(self, name: str) -> str:
        """Returns what it says; empty: nothing."""
        argv = ["nfsconf", "--get", "nfsd", name]
        return run(argv, deadline=Deadline.after(5.0), op="nfsconf", check=False).stdout.strip()

    def is_off(self, name: str) -> bool:
        return self.setting(name).lower() in OFF

    def file_of(self, name: str) -> Path:
        """Returns the last file that has the setting, or the one that everybody knows."""
        main = self.etc / "nfs.conf"
        files = [*sorted((self.etc / "nfs.conf.d").glob("*.conf"), reverse=True), main]
        return next((path for path in files if name in _set_in(path)), main)


def _set_in(path: Path) -> frozenset[str]:
    """Returns the names that a file sets for nfsd; of one that can't be read there are none."""
    try:
        lines = lines_of(read_foreign_text(path))
    except (OSError, StandfastError):
        return frozenset()
    names, section = set(), ""
    for line in lines:
        if (head := re.match(r"\s*\[\s*([^]\s]+)", line)) is not None:
            section = head[1].lower()
        elif section == "nfsd" and (found := re.match(r"\s*([\w.-]+)\s*=", line)) is not None:
            names.add(found[1].lower())
    return frozenset(names)


def obstacles(config: Config, conf: NfsConf | None = None) -> Iterator[Obstacle]:
    """Asks for each setting by which nfsd would not be there for clients."""
    if shutil.which("nfsconf") is None:
        return
    conf = conf or NfsConf()
    yield from _port(config, conf)
    yield from _host(config, conf)
    yield from _switches(config, conf)


def _port(config: Config, conf: NfsConf) -> Iterator[Obstacle]:
    port = conf.setting("port")
    if port and port not in (str(config.nfs.port), "nfs" if config.nfs.port == 2049 else ""):
        path = conf.file_of("port")
        yield Obstacle(
            "port",
            f"nfsd would listen at port {port} by {path}, and nfs.port is {config.nfs.port}",
            f"[nfsd] in {path}: the same port as nfs.port",
        )


def _host(config: Config, conf: NfsConf) -> Iterator[Obstacle]:
    """nfsd is asked at loopback whether it serves; clients go to the node's own address."""
    hosts = [host for host in re.split(r"[,\s]+", conf.setting("host")) if host]
    if not hosts:
        return
    listens = {address for host in hosts for address in _addresses(host) if conf.owns(address)}
    missing = [
        needed
        for needed in dict.fromkeys((LOOPBACK, config.me.address))
        # One that is a name, or spelt otherwise, is of several addresses: of ours one is enough.
        if (ours := [each for each in _addresses(needed) if conf.owns(each)])
        and not any(_covers(listens, each) for each in ours)
    ]
    if missing:
        path = conf.file_of("host")
        none = "" if listens else ", which is no address of this node"
        yield Obstacle(
            "nfs-conf",
            f"nfsd would listen at {', '.join(hosts)} alone by {path} (host){none}; it has to be "
            f"reached at {' and '.join(missing)}",
            f"[nfsd] in {path}: no host",
        )


def _addresses(host: str) -> Sequence[str]:
    try:
        return (str(ipaddress.ip_address(host)),)
    except ValueError:
        ask = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    try:
        found = Question(f"resolve-{host}", ask).answer(Deadline.after(RESOLVE_S))
        return tuple(str(each[4][0]) for each in found)
    except (OSError, UnicodeError, StandfastError):
        return ()


def _covers(listens: set[str], address: str) -> bool:
    wildcard = "::" if ":" in address else "0.0.0.0"  # noqa: S104  # nobody binds it here
    return not listens.isdisjoint((address, wildcard))


def _switches(config: Config, conf: NfsConf) -> Iterator[Obstacle]:
    asks_4_1 = Weight.REFUSES if own_source(config) is None else Weight.BARS
    wrong = (
        ("tcp", conf.is_off("tcp"), "listen at no TCP port", Weight.BARS),
        ("threads", _is_zero(conf.setting("threads")), "have no threads", Weight.BARS),
        ("vers4", conf.is_off("vers4"), "not speak NFS 4", Weight.BARS),
        ("vers4.1", conf.is_off("vers4.1"), "not speak NFS 4.1", asks_4_1),
        ("vers4.2", conf.is_off("vers4.2"), "not speak NFS 4.2 (clients may)", Weight.TOLD),
    )
    for name, is_wrong, what, weight in wrong:
        if is_wrong:
            path = conf.file_of(name)
            text = f"nfsd would {what} by {path} ({name}={conf.setting(name)})"
            yield Obstacle("nfs-conf", text, f"[nfsd] in {path}: no {name}", weight)


def _is_zero(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.strip("0")
