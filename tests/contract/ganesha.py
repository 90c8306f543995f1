"""A real nfs-ganesha for tests: its volume on btrfs, and what starts it without systemd."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.config.model import Config, Nfs, Node, Paths
from standfast.errors import CommandFailed
from standfast.system.clock import Deadline, sleep
from standfast.system.systemd import JournalLine
from tests.support import needs
from tests.support.configs import config_of
from tests.support.volumes import btrfs_on_file, command

NEEDS = (
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts and serves a file system"),
    needs.tool("ganesha.nfsd", "nfs-ganesha nfs-ganesha-vfs"),
    needs.tool("mkfs.btrfs", "btrfs-progs"),
    needs.tool("ip", "iproute2"),
    needs.tool("ss", "iproute2"),
)
SITE_CONFIG = """\
NFS_CORE_PARAM {{
  Protocols = 4;
  Enable_NLM = false;
  Enable_RQUOTA = false;
  Enable_UDP = false;
}}
NFSV4 {{
  Graceless = true;
  Minor_Versions = 0,1,2;
  RecoveryRoot = {run};
}}
%dir {exports}
"""


@contextlib.contextmanager
def volume(directory: Path) -> Iterator[Config]:
    """A volume with the file `file` and its configuration."""
    with btrfs_on_file(directory / "image", directory / "persist") as persist:
        command("btrfs", "-q", "subvolume", "create", persist / "services")
        (persist / "services/file").write_text("hello")
        (directory / "exports").mkdir()
        yield config_of(
            "n1",
            volume="data",
            nodes={"n1": Node(address="127.0.0.1")},
            paths=Paths(live=persist / "services", bind=directory / "data/services"),
            nfs=Nfs(
                server="ganesha", clients=("127.0.0.0/8",), ganesha_exports=directory / "exports"
            ),
        )


class DirectUnits:
    """Starts and stops ganesha itself, as a unit of systemd would, with a guard in front."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.guard_says = ""
        """Its refusal; empty: the server may start."""
        self._process: subprocess.Popen[bytes] | None = None
        run = directory / "run"
        run.mkdir()
        text = SITE_CONFIG.format(run=run, exports=directory / "exports")
        (directory / "ganesha.conf").write_text(text)

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        """Nothing is remembered here."""

    def start(self, unit: str, deadline: Deadline) -> None:
        if self._process is not None and self._process.poll() is None:
            return  # the unit is active
        if self.guard_says:
            raise CommandFailed(f"Job for {unit} failed", returncode=1)
        names = {"-f": "ganesha.conf", "-L": "ganesha.log", "-p": "run/pid"}
        files = [word for option in names for word in (option, self._directory / names[option])]
        self._process = subprocess.Popen(["ganesha.nfsd", "-F", *files])
        while not command("ss", "-Hltn", "sport = :2049"):
            deadline.check(f"start of ganesha, see {self._directory}/ganesha.log")
            if self._process.poll() is not None:
                raise CommandFailed("ganesha ended", returncode=self._process.returncode)
            sleep(0.05)

    def stop(self, unit: str, deadline: Deadline) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=deadline.remaining_s())

    def obstacle(self, unit: str) -> str | None:
        return None

    def has_ended(self, unit: str) -> bool:
        return False

    def kill(self, unit: str, deadline: Deadline) -> None:
        raise AssertionError(unit)

    def journal(self, unit: str, since_utc: float, deadline: Deadline) -> list[JournalLine]:
        return [JournalLine("nfs-server-guard", self.guard_says)] if self.guard_says else []
