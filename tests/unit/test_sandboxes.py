"""What each unit may do beside its work: no more than it was, by systemd's own score of it.

Which unit may what, and why, is in docs/notes/sandboxes.md.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.checkout import CHECKOUT

UNITS = CHECKOUT / "systemd"
# Of `systemd-analyze security`, tenths: 100 is a unit with nothing set. Of systemd 252; a later
# version that scores more is no fault of the unit.
MOST = {
    "standfast-agent@.service": 67,
    "standfast-ended@.service": 12,
    "standfast-exporter.service": 22,
    "standfast-lease@.service": 44,
    "standfast-lost@.service": 44,
    "standfast-nomad@.service": 22,
    "standfast-receive.service": 39,
    "standfast-replicate@.service": 35,
    "standfast-resync.service": 59,
    "standfast-textfile.service": 22,
    "standfast-verify@.service": 35,
    "standfast-watch@.service": 60,
}
ON_THE_HOST = ("standfast-agent@", "standfast-resync", "standfast-watch@")
"""What they mount has to appear on the host."""
# exec_needs_mount_namespace() of systemd 252 to 257, and what these imply.
MAKES_A_NAMESPACE = re.compile(
    r"(?m)^(?:RootDirectory|RootImage|(?:ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths|Bind\w+"
    r"|TemporaryFileSystem|MountImages|Extension\w+|MountFlags|DynamicUser|LogNamespace"
    r"|Private(?:Tmp|Devices|Mounts|IPC|Users)|IPCNamespacePath"
    r"|Protect(?:System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)"
    r"|ProcSubset)="
)


def test_every_service_has_its_limit() -> None:
    assert set(MOST) == {path.name for path in UNITS.glob("*.service")}


def offline() -> str | None:
    """Why the units can't be judged here; None: they can."""
    if reason := needs.why_no("systemd-analyze", "systemd"):
        return reason
    argv = ["systemd-analyze", "--help"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return (
        None if "--offline" in said else "needs systemd 250: `systemd-analyze security --offline`"
    )


_REASON = offline()


@pytest.mark.skipif(_REASON is not None, reason=_REASON or "")
@pytest.mark.parametrize("name", MOST)
def test_a_unit_may_do_no_more_than_it_was_given(name: str, tmp_path: Path) -> None:
    # Its program is installed elsewhere.
    text = re.sub(r"(?m)^(Exec\w+=[-+!:@]*).*$", r"\1/bin/true", (UNITS / name).read_text())
    unit = tmp_path / name.replace("@.", "@volume.")
    unit.write_text(text)
    argv = ["systemd-analyze", "security", "--no-pager", "--offline=true"]
    argv += [f"--threshold={MOST[name]}", str(unit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ON_THE_HOST)
def test_what_has_to_appear_on_the_host_is_mounted_in_its_namespace(name: str) -> None:
    text = (UNITS / f"{name}.service").read_text()
    assert MAKES_A_NAMESPACE.findall(text) == []
    if "resync" not in name:
        # A copy of the host's name as it was at the start: what mounts later goes by that one.
        assert "ProtectHostname=" not in text


@pytest.mark.parametrize("name", ["standfast-lease@", "standfast-lost@"])
def test_who_ends_the_server_sees_what_is_mounted_later(name: str) -> None:
    """nfsd's files are mounted with the server: in a /proc of the unit's own they never appear."""
    text = (UNITS / f"{name}.service").read_text()
    assert not re.search(
        r"(?m)^(ProtectControlGroups|ProtectKernelTunables|ProtectProc|ProcSubset|PrivatePIDs)=",
        text,
    )


@pytest.mark.parametrize("name", MOST)
def test_a_call_that_is_refused_is_an_error_and_no_death(name: str) -> None:
    """A step that fails can be told and undone; a process that is killed can do neither."""
    text = (UNITS / name).read_text()
    assert ("SystemCallFilter=" in text) == ("SystemCallErrorNumber=EPERM" in text)
    assert "NoNewPrivileges=yes" in text


def test_a_received_file_keeps_its_set_uid_bit() -> None:
    text = (UNITS / "standfast-receive.service").read_text()
    assert not re.search(r"(?m)^(RestrictSUIDSGID|PrivateDevices|ProtectClock|DeviceAllow)=", text)


def test_the_receiver_may_confine_what_it_starts() -> None:
    """No set of systemd 252 has these calls; refused, a stream could read from other volumes."""
    text = (UNITS / "standfast-receive.service").read_text()
    allowed = {
        word for line in re.findall(r"(?m)^SystemCallFilter=(.*)$", text) for word in line.split()
    }
    assert {
        f"landlock_{call}" for call in ("create_ruleset", "add_rule", "restrict_self")
    } <= allowed
