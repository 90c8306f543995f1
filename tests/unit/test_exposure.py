"""What doctor and `config check` say of who gets at the volume beside its clients' programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.config.advice import wide_exports
from standfast.config.model import Nfs
from standfast.doctor.exposure_checks import Place, exports, set_uid
from standfast.system.mountinfo import parse_mountinfo
from tests.support.configs import config_in

STANDBY = Place(Path("/persist/services-standby"), "/persist", alive=True, is_ours=True)
PARENT = Place(Path("/persist"), "/persist", alive=True, is_ours=False)
DULL = Place(Path("/persist"), "/persist", alive=False, is_ours=False)


def test_snapshots_that_everybody_can_enter_are_told_with_the_chmod() -> None:
    finding = set_uid([STANDBY, PARENT], None)
    assert not finding.ok
    assert "everybody can enter /persist/services-standby" in finding.evidence
    assert finding.fix == "chmod 0700 /persist/services-standby"


def test_the_mount_of_the_operator_is_only_told() -> None:
    finding = set_uid([PARENT], None)
    assert finding.ok
    assert "unless /persist is mounted with nosuid,nodev" in finding.evidence
    assert set_uid([DULL], None).evidence == (
        "no set-uid program of the volume works on this machine"
    )


def test_a_bind_mount_from_before_is_told_with_the_remount() -> None:
    finding = set_uid([DULL], "/data/services")
    assert not finding.ok
    assert finding.fix == "mount -o remount,bind,nosuid,nodev /data/services"


def test_the_flags_of_a_mount_are_told_from_its_file_system_options() -> None:
    line = "42 22 0:44 /s /data/services rw,nosuid,nodev,noatime shared:1 - btrfs /dev/vdb rw,ssd\n"
    [mount] = parse_mountinfo(line)
    assert mount.flags == "rw,nosuid,nodev,noatime" and mount.options == "rw,ssd"


NO_ROOT = "rw,root_squash"


@pytest.mark.parametrize(
    ("server", "clients", "options", "told"),
    [
        ("kernel", ("192.168.1.0/24",), None, ["192.168.1.0/24"]),
        ("kernel", ("*",), None, ["*"]),
        ("kernel", ("192.168.1.7", "fd00::/64"), None, ["fd00::/64"]),
        ("kernel", ("192.168.1.0/255.255.255.0",), None, ["192.168.1.0/255.255.255.0"]),
        ("kernel", ("*.example.org",), None, ["*.example.org"]),
        ("kernel", ("192.168.1.7", "192.168.1.8/32", "host", "@machines"), None, []),
        ("kernel", ("*",), NO_ROOT, []),
        ("kernel", ("*",), "rw", []),
        ("kernel", ("*",), "no_root_squash,all_squash", []),
        ("kernel", ("*",), "no_root_squash,root_squash", []),
        ("kernel", ("192.168.1.7",), "rw,insecure", ["insecure"]),
        ("kernel", ("*",), "no_root_squash,insecure", ["*", "insecure"]),
        # Its export block always has it.
        ("ganesha", ("*",), NO_ROOT, ["*"]),
    ],
)
def test_root_of_a_whole_network_and_ports_of_everybody_are_told(
    tmp_path: Path, server: str, clients: tuple[str, ...], options: str | None, told: list[str]
) -> None:
    nfs = Nfs(server=server, clients=clients)
    nfs = nfs if options is None else replace(nfs, options=options)
    config = replace(config_in(tmp_path), nfs=nfs)
    problems = list(wide_exports(config))
    assert len(problems) == len(told)
    assert all(word in problem.rule for word, problem in zip(told, problems, strict=True))
    [finding] = exports(config)
    assert finding.ok and all(word in finding.evidence for word in told)
    if not told:
        assert finding.evidence == "root of no whole network is root in the volume"
