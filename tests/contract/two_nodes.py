"""Two storage nodes on loopback with a real sshd between them, for the commands about standbys.

`zippy` is where commands run, in this process; `c1` is reached at 127.0.0.2 by a real ssh, whose
forced command is a real process with c1's configuration. Everything is below one directory, and
what was started is ended by its pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from standfast.assembly.parts import Parts, open_store, use
from standfast.cli.main import main
from standfast.config.load import load
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.demo.commands import STANDFAST
from standfast.demo.commands import command as command_of
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.nodes import as_toml
from standfast.demo.parts import DemoParts
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.consul_clusters import free_ports
from tests.support.pace import patient
from tests.support.scripts import script
from tests.support.volumes import btrfs_on_file, command, make_live
from tests.support.waiting import wait_for

VOLUME = "data-services"
ADDRESSES = {"zippy": "127.0.0.1", "c1": "127.0.0.2"}
ME = pwd.getpwuid(os.getuid()).pw_name
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
RUN_SSHD = Path("/run/sshd")


def require_sshd() -> None:
    if SSHD is None:
        pytest.skip("sshd is not installed (apt-get install openssh-server)")
    needs.require({"ssh": "openssh-client"})


@dataclass
class TwoNodes:
    """zippy, c1 and what is between them."""

    root: Path
    kind: str
    consul: EmbeddedConsul
    captured: pytest.CaptureFixture[str]

    # Configurations

    def write_config(
        self,
        node: str,
        *,
        nodes: tuple[str, ...] = ("zippy", "c1"),
        volume: str = VOLUME,
        replication: dict[str, Any] | None = None,
    ) -> Config:
        disk = self.disk(node) / ("" if volume == VOLUME else volume)
        tables: dict[str, dict[str, Any]] = {
            "": {"cluster": "test", "node": node},
            **{f"nodes.{node}": {"address": ADDRESSES.get(node, "127.0.0.9")} for node in nodes},
            "paths": {
                "live": f"{disk}/services",
                "snapshots": f"{disk}",
                "standby": f"{disk}/services-standby",
                "bind": f"{self.root}/{node}-bind/{volume}",
                "state": f"{self.root}/{node}-var",
                "run": f"{self.root}/{node}-run",
            },
            "consul": {"addresses": [self.consul.address("zippy")]},
            "replication": {
                "ssh_key": f"{self.root}/{node}-key/replication_key",
                "ssh_user": ME,
                "timeout": 60,
                **(replication or {}),
            },
        }
        path = self.etc(node) / f"{volume}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_toml(tables))
        return load(path)

    def etc(self, node: str) -> Path:
        return self.root / f"{node}-etc"

    def disk(self, node: str) -> Path:
        return self.root / f"{node}-disk"

    def config(self, node: str) -> Config:
        return load(self.etc(node) / f"{VOLUME}.toml")

    @property
    def gateway(self) -> ConsulGateway:
        return ConsulGateway([self.consul.address("zippy")], timeout_s=5)

    def lead(self, node: str, epoch: int = 3) -> None:
        config = self.config("zippy")
        leader = Leader(epoch, Holder(node, "boot"), 1, LeaderState.SERVING, ("zippy", "c1"))
        self.gateway.put(config.key("epoch"), dump_epoch(epoch))
        self.gateway.put(config.key("leader"), leader.dump())

    # Commands

    @property
    def words(self) -> list[str]:
        """What runs `standfast` in a process of its own."""
        if self.kind == "directory":
            return command_of(STANDFAST)
        return [sys.executable, "-m", "standfast"]

    def run(self, *argv: str) -> tuple[int, str, str]:
        """On zippy: exit code, stdout, stderr."""
        code = main(list(argv))
        out, err = self.captured.readouterr()
        return code, out, err

    def run_json(self, *argv: str) -> tuple[int, Any]:
        code, out, _ = self.run(*argv, "--json")
        return code, json.loads(out)

    def on_c1(self, line: str) -> str:
        """A command line, as an operator types it on c1."""
        env = {**os.environ, "PATH": f"{self.root}/c1-bin:{os.environ['PATH']}"}
        env |= {"STANDFAST_CONFIG_DIR": str(self.etc("c1"))}
        done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def by_key(self, *argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """ssh or scp with zippy's replication key."""
        options = ["-F", f"{self.root}/by_key.conf", "-o", "BatchMode=yes"]
        words = [argv[0], *options, *argv[1:]]
        return subprocess.run(words, capture_output=True, text=True, timeout=patient(60), **more)

    # What is there

    @property
    def authorized(self) -> Path:
        return self.root / "c1-ssh" / "authorized_keys"

    def names(self, node: str, *, received: bool) -> list[str]:
        snapshots = open_store(self.config(node)).snapshots()
        return [str(snapshot.name) for snapshot in snapshots if snapshot.received is received]

    def newest_on_c1(self) -> Path:
        received = [
            snapshot for snapshot in open_store(self.config("c1")).snapshots() if snapshot.received
        ]
        return max(received, key=lambda candidate: candidate.name).path

    def receiver_pids(self) -> list[int]:
        """Of every `standfast` that sshd has started so far, oldest first."""
        files = (self.root / "pids").iterdir()
        return [int(file.name) for file in sorted(files, key=lambda path: path.stat().st_mtime_ns)]


@contextlib.contextmanager
def two_nodes(
    root: Path, kind: str, monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]
) -> Iterator[TwoNodes]:
    """zippy is primary of epoch 3; no key, no door, nothing replicated."""
    require_sshd()
    with contextlib.ExitStack() as stack:
        if kind == "directory":
            use(DemoParts())  # for the commands that run in this process
            stack.callback(use, Parts())
        consul = stack.enter_context(EmbeddedConsul())
        consul.add_agent("zippy")
        pair = TwoNodes(root, kind, consul, captured)
        for node in ADDRESSES:
            if kind == "btrfs":
                stack.enter_context(btrfs_on_file(root / f"{node}.img", pair.disk(node)))
            pair.disk(node).mkdir(exist_ok=True)
            live = pair.write_config(node).paths.live
            if node == "zippy":
                make_live(live, kind)
            pair.config(node).paths.standby.mkdir()
        pair.lead("zippy")
        stack.enter_context(_sshd(pair))
        monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(pair.etc("zippy")))
        monkeypatch.setenv("PATH", f"{root}/zippy-bin:{os.environ['PATH']}")
        yield pair


@contextlib.contextmanager
def _sshd(pair: TwoNodes) -> Iterator[None]:
    root = pair.root
    [port] = free_ports(1)
    _programs(pair)
    _client(root, port)
    pair.authorized.parent.mkdir(mode=0o700)
    make_host_key(root)
    (root / "sshd.conf").write_text(
        f"""\
Port {port}
ListenAddress {ADDRESSES["c1"]}
HostKey {root}/host_key
PidFile none
AuthorizedKeysFile {pair.authorized} {pair.authorized}2
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
SetEnv PATH={root}/c1-bin:{os.environ["PATH"]} STANDFAST_CONFIG_DIR={pair.etc("c1")}
"""
    )
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0 and not RUN_SSHD.exists():  # Debian makes it when the service starts
            RUN_SSHD.mkdir(mode=0o755)
            stack.callback(RUN_SSHD.rmdir)
        log = stack.enter_context((root / "sshd.log").open("wb"))
        daemon = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(root / "sshd.conf")], stderr=log
        )
        try:
            wait_for(lambda: _answers(port), 30, f"sshd answers ({root}/sshd.log)")
            yield
        finally:
            daemon.terminate()
            daemon.wait(patient(30))


def _programs(pair: TwoNodes) -> None:
    """`standfast` on c1, with an authorized_keys of its own; `ssh` on zippy, with this port."""
    root = pair.root
    (root / "pids").mkdir()
    script(
        root / "c1-bin" / "standfast",
        f'touch {root}/pids/$$\n[ "$2" != authorize ] || set -- "$@" --file {pair.authorized}\n'
        f'exec env PYTHONPATH={CHECKOUT} {shlex.join(pair.words)} "$@"\n',
    )
    ssh = shutil.which("ssh")
    script(
        root / "zippy-bin" / "ssh",
        'case " $* " in *" -i "*) by=product ;; *) by=operator ;; esac\n'
        f'exec {ssh} -F {root}/$by.conf "$@"\n',
    )


def _client(root: Path, port: int) -> None:
    """What -F gives: the port, and for people a key and a file of known hosts."""
    key = f"{root}/zippy-key/replication_key"
    theirs = f"UserKnownHostsFile {root}/operator-known\nStrictHostKeyChecking accept-new\n"
    common = f"Host *\nPort {port}\n"
    (root / "product.conf").write_text(common)
    person = f"IdentitiesOnly yes\nIdentityFile {root}/operator-key\n"
    (root / "operator.conf").write_text(common + theirs + person)
    ours = f"IdentitiesOnly yes\nIdentityFile {key}\nUser {ME}\nIdentityAgent none\n"
    (root / "by_key.conf").write_text(common + theirs + ours)


def make_host_key(root: Path) -> None:
    for old in (root / "host_key", root / "host_key.pub"):
        old.unlink(missing_ok=True)
    command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / "host_key")


def operator_may_log_in(pair: TwoNodes) -> None:
    """As on a machine that somebody administers: an unrestricted key of a person."""
    key = pair.root / "operator-key"
    command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", key)
    pair.authorized.write_text(key.with_suffix(".pub").read_text())
    pair.authorized.chmod(0o600)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((ADDRESSES["c1"], port), 1):
        return True
    return False
