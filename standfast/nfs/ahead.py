"""What starting the kernel's NFS server and exporting the volume would fail at, asked ahead.

Invariant: nothing is exported, started or changed. exportfs itself reads the line that a promotion
would write, in namespaces of its own, where it finds nothing else and keeps its table for itself
(it has no dry run).
"""

from __future__ import annotations

import ipaddress
import platform
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from msgspec import structs

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.node.obstacle import Obstacle, Weight
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text
from standfast.system.lines import fields_of, lines_of
from standfast.system.probe import listening
from standfast.system.run import run
from standfast.system.threads import Question

EXPORTS = Path("/etc/exports.d")
FILE_SYSTEMS = Path("/proc/filesystems")
NO_MAIN_FILE = "can't open /etc/exports for reading"
"""Of a node that exports by its directory alone: no error."""
PROGRAMS = ("exportfs", "rpc.nfsd")
RESOLVE_S = 5.0
TRIAL_S = 10.0
# The network's, too: exportfs has the kernel of it forget what mountd told.
ALONE = ("--net", "--mount", "--propagation", "private")
# $1: the line. tmpfs over both places that exportfs reads and keeps its table in.
TRIAL = """set -e
mount -t tmpfs tmpfs /var/lib/nfs
: > /var/lib/nfs/none
if [ -e /etc/exports ]; then mount --bind /var/lib/nfs/none /etc/exports; fi
mount -t tmpfs tmpfs /etc/exports.d
printf '%s\\n' "$1" > /etc/exports.d/standfast.exports
exportfs -r || true
cat /var/lib/nfs/etab
"""


def missing_programs() -> Iterator[Obstacle]:
    """Looks for what the server is made of."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        yield Obstacle("unit", f"there is no {' and no '.join(lacking)}", "install the NFS server")


def missing_kernel_part(kernel: Path = FILE_SYSTEMS) -> Iterator[Obstacle]:
    """Looks whether the running kernel has nfsd, or a module for it: an upgrade of the kernel's
    package may have taken away the modules of the one that runs."""
    known = [fields_of(line)[-1:] for line in lines_of(read_foreign_text(kernel))]
    if ["nfsd"] in known or shutil.which("modprobe") is None:
        return
    argv = ["modprobe", "--dry-run", "--quiet", "nfsd"]
    if run(argv, deadline=Deadline.after(TRIAL_S), op="modprobe", check=False).returncode != 0:
        yield Obstacle(
            "unit",
            f"the running kernel ({platform.release()}) has no nfsd, and no module for it",
            "reboot, if its package was upgraded or removed since it started; or install a kernel "
            "with nfsd",
        )


def exports_trial(config: Config, line: Callable[[Config, Path, str], str]) -> Iterator[Obstacle]:
    """Has exportfs read the line that would be written, and looks at what it makes of it: its exit
    status tells of other files as well. Of another path, as the volume's own is there only once it
    is made; without the clients that it would look up."""
    if shutil.which("exportfs") is None or shutil.which("unshare") is None:
        return
    path = config.paths.live.parent
    clients = tuple(client for client in config.nfs.clients if not _is_host(client))
    trial = structs.replace(
        config, nfs=structs.replace(config.nfs, clients=clients or ("127.0.0.1",))
    )
    text = line(trial, path, str(uuid.uuid4())).rstrip("\n")
    EXPORTS.mkdir(exist_ok=True)
    argv = ["unshare", *ALONE, "sh", "-c", TRIAL, "sh", text]
    done = run(argv, deadline=Deadline.after(TRIAL_S), op="exports-trial", check=False)
    lines = [line for line in lines_of(done.stderr) if NO_MAIN_FILE not in line]
    said = " ".join(lines) or f"it ended with {done.returncode}"
    if done.returncode != 0:  # of what is around it: exportfs' own status isn't asked
        raise StandfastError(f"the export could not be tried: {said[:500]}")
    # exportfs takes names for one that differ in capitals alone.
    if len(lines_of(done.stdout)) < len({client.lower() for client in trial.nfs.clients}):
        yield Obstacle(
            "exports",
            f"exportfs refuses the export of {config.paths.live}: {said[:500]}",
            "nfs.options and nfs.clients in the configuration are as exports(5) has them",
        )


def unresolved(
    clients: Sequence[str], resolve: Callable[[str], object] | None = None
) -> Iterator[Obstacle]:
    """Asks for the address of each client that is a name: exportfs leaves out, without a word,
    whoever has none."""
    ask = resolve or (lambda name: socket.getaddrinfo(name, None))
    names = [client for client in clients if _is_host(client)]
    questions = {name: Question(f"resolve-{name}", partial(ask, name)) for name in names}
    limit = Deadline.after(RESOLVE_S)
    nameless = []
    for name, question in questions.items():
        try:
            question.answer(limit)
        except (OSError, UnicodeError, StandfastError) as error:
            nameless.append(f"{name} ({error})")
    if nameless:
        yield Obstacle(
            "clients",
            f"no address is known of {', '.join(nameless)}: the server would let no such client in",
            "mend the DNS or /etc/hosts of this node, or take the name out of nfs.clients",
            Weight.REFUSES,
        )


def _is_host(client: str) -> bool:
    """Tells whether exports(5) would look the name up: no address, network, pattern or netgroup."""
    if client.startswith(("@", "gss/")) or any(char in client for char in "*?["):
        return False
    try:
        ipaddress.ip_network(client, strict=False)
    except ValueError:
        return bool(client)
    return False


def taken_port(config: Config, *, running: bool) -> Iterator[Obstacle]:
    """Looks for another program at the server's port; `running`: the server itself is there."""
    port = config.nfs.port
    if not running and listening(port):
        yield Obstacle(
            "port",
            f"another program listens at TCP port {port}, and nfsd does not run",
            f"`ss -ltnp sport = :{port}` names it: end it",
        )
