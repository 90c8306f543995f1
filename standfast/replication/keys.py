"""The replication key of this node, and how ssh uses it.

Invariant: an existing key is never overwritten, and ssh never asks anybody anything: a standby
whose host key isn't known, or has changed, isn't spoken to.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from standfast.config.model import Config
from standfast.errors import Refused
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.files import beside, read_foreign_text
from standfast.system.lines import lines_of
from standfast.system.probe import is_ours, source_to
from standfast.system.run import run
from standfast.text import clean

KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
_COMMENT = re.compile(r"[A-Za-z0-9@._:+=/-]{0,100}\Z")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One line of a .pub file, looked at."""

    kind: str
    blob: str
    comment: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.blob, self.comment)))

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Returns the key; Refused (bad-key) for anything but `KIND BASE64 [COMMENT]` on one line:
        nothing is injected."""
        parts = text.strip().split(" ", 2)
        if len(parts) < 2 or parts[0] not in KINDS:
            raise _no_key(text, "it is not `ssh-ed25519 AAAA... comment` on one line")
        kind, blob, comment = parts[0], parts[1], parts[2].strip() if len(parts) == 3 else ""
        try:
            raw = base64.b64decode(blob, validate=True)
        except (binascii.Error, ValueError):
            raise _no_key(text, "its second word is not base64") from None
        head = len(kind).to_bytes(4, "big") + kind.encode()
        if not raw.startswith(head) or len(raw) < len(head) + 32:
            raise _no_key(text, f"its second word does not hold a key of kind {kind}")
        if not _COMMENT.match(comment):
            raise _no_key(text, "its comment is not one word of letters, digits and @._:+=/-")
        return cls(kind, blob, comment)


def _no_key(text: str, why: str) -> Refused:
    return Refused(
        Reason.BAD_KEY,
        f"{clean(text[:60])!r} is no public key: {why}. "
        f"`standfast standby add NODE` on the primary prints it",
    )


def ensure_key(config: Config, deadline: Deadline) -> bool:
    """Makes the replication key when there is none, and tells whether it did. It never overwrites
    one."""
    path = config.replication.ssh_key
    if path.exists():
        return False
    public = public_path(path)
    if public.exists() or public.is_symlink() or path.is_symlink():
        raise Refused(
            Reason.BAD_KEY,
            f"{path} doesn't exist, but a part of the key is left ({public} or a broken symlink): "
            f"put the private key back, or move that part away, and a new key is made",
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    comment = comment_of(config.cluster, config.node)
    # Made beside its place and linked there: neither half-made nor over one that came meanwhile.
    temporary = beside(path)
    made = (temporary, public_path(temporary))
    try:
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment]
        run([*argv, "-f", str(temporary)], deadline=deadline, op="make-key")
        os.link(temporary, path)
        os.link(public_path(temporary), public)
    except FileExistsError:
        return False
    finally:
        for leftover in made:
            leftover.unlink(missing_ok=True)
    return True


def comment_of(cluster: str, node: str) -> str:
    """Returns the comment of a node's key, by which a standby knows whose it is."""
    return f"standfast-{cluster}-{node}"


def public_path(private: Path) -> Path:
    """Returns the file of the public half beside the private one."""
    return private.with_name(private.name + ".pub")


def public_key(config: Config, deadline: Deadline) -> PublicKey:
    """Returns the public half, as ssh-keygen tells it when there is no .pub file beside the key."""
    path = config.replication.ssh_key
    mode = path.stat().st_mode
    if mode & 0o077:
        raise Refused(
            Reason.BAD_KEY, f"{path} can be read by others (mode {mode & 0o777:04o}), so ssh "
            f"doesn't use it: chmod 0600 {path}"
        )  # fmt: skip
    with contextlib.suppress(FileNotFoundError):
        return PublicKey.parse(read_foreign_text(public_path(path)))
    told = run(["ssh-keygen", "-y", "-P", "", "-f", str(path)], deadline=deadline, op="public-key")
    return PublicKey.parse(told.stdout)


def known_hosts(config: Config) -> Path:
    """Returns the file with the host keys of the standbys, of all volumes, as `standby add`
    accepted them."""
    return config.paths.state / "known_hosts"


CONFIGURED_S = 5.0
"""For ssh to say what it is configured to."""
OF_SESSION = (
    # Some of these are younger than some ssh, and what its configuration has may be as well.
    "IgnoreUnknown=*",
    "RemoteCommand=none",
    "SessionType=default",
    "StdinNull=no",
    "ForkAfterAuthentication=no",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
    "Tunnel=no",
    # What it says on stderr is read.
    "LogLevel=INFO",
    "VisualHostKey=no",
)
"""What /etc/ssh/ssh_config and ~/.ssh/config may not change of a session that carries one command:
ssh takes the first value, and that of its command line is the first. The way to the machine is
theirs: Hostname, Port, ProxyCommand, ProxyJump, algorithms."""
OF_KEY = (
    # Another connection is somebody else's, with another key.
    "ControlMaster=no",
    "ControlPath=none",
    # Kerberos and an agent's keys would come before ours, and open more than that may.
    "PreferredAuthentications=publickey",
    "PubkeyAuthentication=yes",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "AddKeysToAgent=no",
    "ForwardAgent=no",
    "ForwardX11=no",
)
"""The same of a session that the replication key opens."""


def as_options(options: Sequence[str]) -> list[str]:
    """Returns them as ssh's command line has them."""
    return [word for option in options for word in ("-o", option)]


def with_known_hosts(config: Config) -> tuple[str, str]:
    """Returns the option of ssh for our file of host keys, and the user's after it."""
    ours = str(known_hosts(config)).replace("%", "%%")
    return "-o", f'UserKnownHostsFile="{ours}" ~/.ssh/known_hosts'


def ssh_argv(config: Config, standby: str, *, accept_new: bool = False) -> list[str]:
    """Returns the ssh command to the standby with the replication key, up to the address; nobody is
    asked anything.

    A host key has to be known: by our file, the user's or the system's. Only `standby add`, with
    an operator before it, says `accept_new`: an unknown one is noted then, a changed one never.
    """
    options = config.replication
    argv = [
        *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
        *as_options(OF_SESSION),
        *as_options(OF_KEY),
        *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
        *with_known_hosts(config),
        *("-o", f"StrictHostKeyChecking={'accept-new' if accept_new else 'yes'}"),
        *("-i", str(options.ssh_key)),
        f"{options.ssh_user}@{config.nodes[standby].address}",
    ]
    return [argv[0], *from_own_address(config, standby, argv), *argv[1:]]


def from_own_address(config: Config, standby: str, argv: Sequence[str]) -> list[str]:
    """Returns the options by which ssh leaves by this node's address in [nodes], which the key's
    line on the standby names (`from=`): the kernel takes another one where it has several, also one
    of IPv6 that changes by the day. None are needed where it takes that one anyway.

    `argv` is ssh's command line to the standby. What root's configuration says of the way counts:
    another address of either end, or another network, is as somebody wants it. A ProxyJump or
    ProxyCommand makes connections of its own, to which this option does nothing.
    """
    address = config.nodes[standby].address
    try:
        own, there = ip_address(config.nodes[config.node].address), ip_address(address)
    except (KeyError, ValueError):
        return []
    if own.version != there.version or not is_ours(str(own)):
        return []
    if source_to(str(there)) in (None, str(own)):
        return []
    asked = [argv[0], "-G", *argv[1:]]
    told = run(asked, deadline=Deadline.after(CONFIGURED_S), op="ssh-configured", check=False)
    said = dict(line.split(" ", 1) for line in lines_of(told.stdout) if " " in line)
    theirs = {"bindaddress", "bindinterface"} & set(said)
    if said.get("hostname") != address or theirs:
        return []
    return ["-o", f"BindAddress={own}"]
