"""Mount tables, unit files, units' words and processes, as they really look."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from standfast.cli.main import main
from standfast.clients import dependants
from standfast.clients.decide import decide
from standfast.clients.observation import Answer, NoServer, Observed, Server, Tie
from standfast.clients.ports import Namespace, Use
from standfast.clients.units import nfs_source, unit_files, unit_name
from standfast.config.client import Client
from standfast.config.example import example
from standfast.doctor.client_checks import HELPERS, Facts, examine
from standfast.errors import StandfastError
from standfast.mounts.mounts import KernelMounts
from standfast.mounts.processes import ProcProcesses, unit_of
from standfast.mounts.units import SystemdMountUnits, parse_show, stopped_with, unit_options
from standfast.system.clock import Deadline
from standfast.system.mountinfo import (
    Mount,
    canonical,
    elsewhere,
    parse_mountinfo,
    parse_volumes,
    part_of,
    stack_at,
    wire_fsid,
)
from tests.fakes.client import fake_client, fsid
from tests.support import needs
from tests.support.configs import config_in
from tests.support.scripts import script
from tests.support.waiting import soon

PATH = Path("/data/services")
MOUNTINFO = """\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw
41 22 0:40 / /data/services rw,relatime shared:5 - autofs systemd-1 rw,fd=40,pgrp=1,timeout=60
42 41 0:50 / /data/services rw,relatime shared:6 - nfs4 data-services.service.consul:/persist/services rw,vers=4.2,rsize=1048576,hard,proto=tcp,timeo=600,clientaddr=192.168.1.9,local_lock=none,addr=192.168.1.2
43 22 0:50 /sub\\040dir /srv/www rw shared:7 - nfs4 data-services.service.consul:/persist/services rw,vers=4.2,addr=192.168.1.2
44 22 0:51 / /mnt/nas rw - nfs4 [2001:db8::1]:/export rw,addr=2001:db8::1
"""  # noqa: E501


def test_an_automounted_nfs_mount_is_understood() -> None:
    mounts = parse_mountinfo(MOUNTINFO)
    autofs, nfs = stack_at(mounts, PATH)
    assert autofs.is_autofs and not autofs.is_nfs and autofs.address is None
    assert nfs.is_nfs and (nfs.id, nfs.device, nfs.address) == (42, "0:50", "192.168.1.2")
    assert nfs.export == "/persist/services"
    assert nfs.option("vers") == "4.2" and nfs.option("hard") is None
    [bind] = elsewhere(mounts, PATH, "/persist/services")
    assert (bind.point, bind.root) == ("/srv/www", "/sub dir")
    assert mounts[-1].export == "/export"


SUB = (
    "45 22 0:50 / /srv/sub rw - nfs4 data-services.service.consul:/persist/services/a/b rw,addr=::1"
)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (SUB, "a/b"),
        (SUB.replace("/services/a/b ", "/services "), "."),
        (SUB.replace(" / ", " /a/b ").replace("/services/a/b ", "/services "), "a/b"),
        (SUB.replace("/services/a/b", "/services-standby"), None),
        (SUB.replace("nfs4", "btrfs"), None),
    ],
)
def test_a_bind_mount_of_a_directory_is_known_as_the_kernel_shows_it(
    line: str, part: str | None
) -> None:
    [mount] = parse_mountinfo(line)
    shown_part = part_of(mount, "/persist/services")
    assert shown_part == (None if part is None else Path(part))
    others = elsewhere([mount], Path("/data/services"), "/persist/services")
    assert others == ((mount,) if part is not None else ())


@pytest.mark.parametrize("line", ["", "x", "1 2 3", "a b c d e - nfs4", "42 41 0:50 / / rw - "])
def test_lines_that_are_none_are_left_out_or_harmless(line: str) -> None:
    for mount in parse_mountinfo(line):
        assert mount.address is None


def test_addresses_are_one_in_every_spelling() -> None:
    assert canonical("2001:db8::1") == canonical("2001:0db8:0:0::1")
    assert canonical("::ffff:192.168.1.2") == canonical("192.168.1.2")
    assert canonical("Node.lan") == canonical("node.lan")
    assert canonical("192.168.1.2") != canonical("192.168.1.20")
    assert nfs_source("2001:db8::1", PATH) == "[2001:db8::1]:/data/services"
    assert nfs_source("192.168.1.2", PATH) == "192.168.1.2:/data/services"


def test_the_list_of_nfs_file_systems_in_the_kernel() -> None:
    text = (
        "NV SERVER   PORT DEV          FSID                              FSC\n"
        "v4 c0a80102  801 0:50         c3f2a1d400004a1b:8c00000000000007 no\n"
        "garbage\n"
    )
    assert parse_volumes(text) == {"0:50": "c3f2a1d400004a1b:8c00000000000007"}
    assert wire_fsid("c3f2a1d4-0000-4a1b-8c00-000000000007") == "c3f2a1d400004a1b:8c00000000000007"
    assert wire_fsid("00000000-0000-4000-8000-000000000007") == "4000:8000000000000007"
    assert wire_fsid("7") is None


# Units


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/services", "data-services.mount"),
        ("/data/my-files", r"data-my\x2dfiles.mount"),
        ("/srv/.x y", r"srv-.x\x20y.mount"),
        ("/.x", r"\x2ex.mount"),
        ("/", "-.mount"),
        ("/ä_b:c", r"\xc3\xa4_b:c.mount"),
    ],
)
def test_unit_names_are_those_of_systemd(path: str, name: str) -> None:
    assert unit_name(Path(path), "mount") == name
    argv = ["systemd-escape", "--path", "--suffix=mount", path]
    needs.require({argv[0]: "systemd"})
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    assert done.stdout.strip() == name


def test_the_units_are_those_of_the_runbook_and_systemd_takes_them(tmp_path: Path) -> None:
    config = structs.replace(config_in(tmp_path), volume="data-services")
    config = structs.replace(config, paths=structs.replace(config.paths, bind=PATH))
    files = unit_files(config)
    assert list(files) == ["data-services.mount", "data-services.automount"]
    mount, automount = files.values()
    assert f"What=data-services.service.consul:{config.paths.live}" in mount
    assert "Options=nosuid,nodev,vers=4.2,hard,retry=0\n" in mount and "Type=nfs4\n" in mount
    assert "TimeoutIdleSec=60s" in automount and "Where=/data/services\n" in automount
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    argv = ["systemd-analyze", "verify", *(str(tmp_path / name) for name in files)]
    needs.require({argv[0]: "systemd"})
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    ours = [line for line in done.stderr.splitlines() if "data-services" in line]
    assert not [line for line in ours if "man standfast" not in line], done.stderr


def test_client_units_prints_and_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data-services.toml").write_text(example("data-services"))
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path))
    assert main(["client", "units"]) == 0
    assert "What=data-services.service.consul:/persist/services" in capsys.readouterr().out
    units = tmp_path / "units"
    units.mkdir()
    argv = ["client", "units", "--install", "--dir", str(units)]
    assert main([*argv, "--dry-run"]) == 0
    assert list(units.iterdir()) == []
    assert main(argv) == 0 and main(argv) == 0
    assert "is there already" in capsys.readouterr().out
    assert sorted(path.name for path in units.iterdir()) == [
        "data-services.automount",
        "data-services.mount",
    ]


def test_options_come_from_the_last_word_of_the_unit() -> None:
    text = """\
# /run/systemd/generator/data-services.mount
[Mount]
Where=/data/services
Options=vers=4.2,hard,_netdev,x-systemd.automount,x-systemd.idle-timeout=60,bg
# /etc/systemd/system/data-services.mount.d/more.conf
[Mount]
Options = noatime,vers=4.1,hard,nofail,retry=2
"""
    assert unit_options(text) == "noatime,vers=4.1,hard"
    assert unit_options("[Mount]\nOptions=_netdev\n") is None
    assert unit_options("[Mount]\nWhat=x\n") is None


FAKE_SYSTEMCTL = """\
echo "$*" >> {log}
case "$*" in
*UnitFileState*) cat <<END
Id=data-services.mount
FragmentPath=/x
ActiveState=activating
UnitFileState=generated

Id=data-services.automount
ActiveState=active
FragmentPath=/y
UnitFileState=generated
END
;;
*RequiredBy*)
echo "RequiredBy=db.service remote-fs.target web.service off.service far.service"
;;
*RequiresMountsFor*) cat <<END
Id=db.service
ActiveState=active
RequiresMountsFor=/var /data/services/db

Id=web.service
ActiveState=activating
RequiresMountsFor=/data/services

Id=off.service
ActiveState=inactive
RequiresMountsFor=/data/services

Id=far.service
ActiveState=active
RequiresMountsFor=/data/services2
END
;;
*) cat <<END
Id=one.service
ActiveState=active

Id=two.service
ActiveState=failed
END
;;
esac
"""


def test_what_systemd_says_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "systemctl", FAKE_SYSTEMCTL.format(log=tmp_path / "calls"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    units = SystemdMountUnits()
    assert units.tie(PATH) == Tie(unit=True, automount=True, mounting=True)
    assert units.dependants(PATH) == ("db.service", "web.service")
    assert units.active(["one.service", "two.service"]) == ("one.service",)
    assert units.active([]) == ()
    units.restart(["a.service", "b.service"], soon(10))
    units.end_mounting(PATH, soon(10))
    assert (tmp_path / "calls").read_text().splitlines()[-2:] == [
        "restart -- a.service b.service",
        "kill -- data-services.mount",
    ]


STOPPED_WITH = r"""
shift 3
for unit; do
  case "$unit" in
    data-my\\x2dvolume.mount) printf '%s\n' 'RequiredBy=db.service' 'BoundBy=' \
      'ConsistsOf="a\\x2db.service" sync.service' "" ;;
    db.service) printf '%s\n' 'RequiredBy=' 'BoundBy=web.service db.service' 'ConsistsOf=' "" ;;
    a*) exit 1 ;;
    *) printf '%s\n' 'RequiredBy=' 'BoundBy=data-my.mount' 'ConsistsOf=' "" ;;
  esac
done
"""


def test_who_stops_with_a_unit_stops_what_stops_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "systemctl", STOPPED_WITH)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert list(stopped_with(r"data-my\x2dvolume.mount")) == [
        r"a\x2db.service",
        "data-my.mount",
        "db.service",
        "sync.service",
        "web.service",
    ]


def test_blocks_of_systemctl_show() -> None:
    assert parse_show("Id=a\nX=1=2\n\n\nId=b\n") == [{"Id": "a", "X": "1=2"}, {"Id": "b"}]
    assert parse_show("") == []


# Probes and processes


def test_a_probe_says_how_the_directory_is(tmp_path: Path) -> None:
    mounts = KernelMounts(tmp_path / "run")
    assert mounts.probe(tmp_path, soon(10)) == (Answer.ANSWERS, "")
    answer, detail = mounts.probe(tmp_path / "none", soon(10))
    assert answer is Answer.FAILS and "ENOENT" in detail
    assert list((tmp_path / "run").iterdir()) == []


def test_a_stale_handle_is_told_from_other_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = "import errno, os\ndef raises(path): raise OSError(errno.ESTALE, 'stale')\n"
    from standfast.mounts import mounts as module

    monkeypatch.setattr(module, "PROBE", f"{stale}os.statvfs = raises\n{module.PROBE}")
    assert KernelMounts(tmp_path).probe(tmp_path, soon(10)) == (Answer.STALE, "stale file handle")


def test_a_probe_that_hangs_is_ended_and_one_that_can_not_be_is_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from standfast.mounts import mounts as module

    hangs = "import os, time\nos.statvfs = lambda path: time.sleep(60)\n"
    monkeypatch.setattr(module, "PROBE", hangs + module.PROBE)
    mounts = KernelMounts(tmp_path)
    answer, _ = mounts.probe(tmp_path, Deadline.after(0.7))
    assert answer is Answer.HANGS
    # One that the kernel didn't let die: it goes on under its mark.
    argv = [sys.executable, "-c", module.PROBE, str(tmp_path), str(tmp_path / "probe.pid")]
    with subprocess.Popen(argv) as left:
        try:
            limit = soon(10)
            while not (tmp_path / "probe.pid").exists() or (
                (tmp_path / "probe.pid").read_text() != str(left.pid)
            ):
                assert not limit.expired
            monkeypatch.setattr(module, "PROBE", "raise SystemExit(99)")
            assert mounts.probe(tmp_path, soon(10))[0] is Answer.HANGS
        finally:
            left.kill()
    monkeypatch.setattr(module, "PROBE", "")
    assert mounts.probe(tmp_path, soon(10))[0] is Answer.ANSWERS


def test_a_host_name_is_resolved_and_an_address_is_taken_as_it_is(tmp_path: Path) -> None:
    mounts = KernelMounts(tmp_path)
    assert mounts.resolve("192.168.1.2", soon(10)) == {"192.168.1.2"}
    assert mounts.resolve("2001:0db8::1", soon(10)) == {"2001:db8::1"}
    assert "127.0.0.1" in mounts.resolve("localhost", soon(10))
    assert mounts.resolve("nobody.invalid", soon(10)) == frozenset()
    assert mounts.resolve("--help", soon(10)) == frozenset()


def test_who_has_a_file_open_is_found_by_path_and_by_the_number_of_the_mount(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("x")
    program = "import sys; f = open(sys.argv[1], sys.argv[2]); print(flush=True); input()"
    argv: list[str | Path] = [sys.executable, "-c", program, tmp_path / "file", "r+"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        try:
            assert user.stdout is not None
            user.stdout.readline()
            processes = ProcProcesses()
            [use] = processes.users(tmp_path, ())
            assert (use.pid, use.target, use.writes) == (user.pid, f"{tmp_path}/file", True)
            info = Path(f"/proc/{user.pid}/fdinfo").iterdir()
            ids = {
                line
                for info_file in info
                for line in info_file.read_text().splitlines()
                if "mnt_id" in line
            }
            numbers = [int(line.split()[1]) for line in ids]
            assert user.pid in {holder.pid for holder in processes.holders(numbers)}
            assert processes.holders([]) == [] and processes.holders([-5]) == []
            assert processes.users(tmp_path / "other", ()) == []
        finally:
            user.kill()


def test_the_unit_of_a_process(tmp_path: Path) -> None:
    for text, unit in (
        ("0::/system.slice/db.service\n", "db.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("0::/system.slice/docker-1f.scope/inner\n", "docker-1f.scope"),
        ("0::/\n", ""),
    ):
        (tmp_path / "cgroup").write_text(text)
        assert unit_of(tmp_path) == unit
    assert unit_of(tmp_path / "none") == ""


# Dependants


def test_commands_and_hooks_are_told_and_their_failures_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    line = f'echo "$STANDFAST_VOLUME $STANDFAST_PATH $STANDFAST_ADDRESS $STANDFAST_EPOCH" > {out}'
    config = fake_client(tmp_path, on_change=(line, "exit 7")).config
    change = dependants.Change("data-services", PATH, "192.168.1.3", 8)
    said = dependants.run_commands(config, "client.on_change", config.client.on_change, change)
    assert out.read_text() == "data-services /data/services 192.168.1.3 8\n"
    assert "ended with status 7" in said[1]

    def broken(*_: object) -> list[str]:
        raise StandfastError("the scheduler does not answer")

    hooks = [lambda *_: ["restarted 2"], broken]
    said = dependants.call_hooks(config, hooks, change)
    assert said == ["restarted 2", "the scheduler does not answer"]


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ('options = "vers=3,hard"', "4.0 and older"),
        ('options = "hard"', "4.0 and older"),
        ('options = "vers=4.2,soft"', "soft gives programs errors"),
        ('binds = ["/data/services/x"]', "overlaps with paths.bind"),
        ('binds = ["srv"]', "must be an absolute path without"),
        ('restart_units = ["web"]', "full name of a service unit"),
        ('manage = "yes"', "must be one of"),
    ],
)
def test_a_client_table_that_can_not_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    table: str, word: str,
) -> None:  # fmt: skip
    text = example("data-services").replace("[client]", f"[client]\n{table}")
    tomllib.loads(text)
    (tmp_path / "data-services.toml").write_text(text)
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path))
    assert main(["config", "check"]) == 2
    said = capsys.readouterr()
    assert word in said.err + said.out


# doctor

CONFIG = structs.replace(config_in(Path("/x")), node="client", client=Client(spread=0.0))
A, B = "192.168.1.2", "192.168.1.3"


def nfs(address: str, device: str = "0:50", point: str = str(CONFIG.paths.bind)) -> Mount:
    source = f"x:{CONFIG.paths.live}"
    return Mount(device, "/", point, "nfs4", 30, source, f"rw,vers=4.2,hard,addr={address}")


SERVER = Server("n1", A, frozenset({A}), 3, fsid(3))
WELL = Observed(SERVER, (nfs(A),), answer=Answer.ANSWERS, tie=Tie(unit=True))


def facts(observed: Observed = WELL, **changes: object) -> Facts:
    base = Facts(
        observed, decide(observed, CONFIG), "data-services.service.consul", frozenset({A}), None
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_client_that_is_well_has_no_fix() -> None:
    findings = examine(facts(), CONFIG)
    assert len(findings) == 9
    assert all(finding.ok and not finding.fix for finding in findings), findings


def test_bind_mounts_of_an_earlier_server_are_named_while_the_automount_is_idle() -> None:
    autofs = Mount("0:9", "/", str(CONFIG.paths.bind), "autofs")
    strays = (nfs(B, "0:49", "/srv/www"), nfs(A, "0:48", "/srv/fine"))
    told = facts(replace(WELL, stack=(autofs,), elsewhere=strays))
    [bad] = [finding for finding in examine(told, CONFIG) if not finding.ok]
    assert bad.check == "binds" and "/srv/www" in bad.evidence and "fine" not in bad.evidence


def test_a_node_that_is_no_client_gets_no_word_of_it() -> None:
    assert examine(facts(Observed(SERVER)), CONFIG) == []


USE = Use(41, "mysqld", "/x/data/ibdata1", "mysql.service", writes=True, hangs=True)


@pytest.mark.parametrize(
    ("told", "check", "evidence", "fix"),
    [
        (facts(replace(WELL, stack=(nfs(B),))), "mount", "another server", "standfast remount"),
        (facts(replace(WELL, answer=Answer.STALE)), "mount", "stale: ", "standfast remount"),
        (facts(replace(WELL, answer=Answer.HANGS)), "mount", "hangs", "network"),
        (facts(replace(WELL, stack=())), "mount", "is not mounted", "standfast-watch@"),
        (facts(replace(WELL, service=NoServer("none"))), "server", "none", "standfast status"),
        (facts(no_answer="it does not answer in time"), "server", "can't mount", "firewalls"),
        (
            facts(replace(WELL, service=replace(SERVER, strangers=("n9",)))),
            "server", "n9 may serve next", "[nodes] in that file",
        ),
        (facts(name_gives=frozenset()), "dns", "does not resolve", "8600"),
        (facts(name_gives=frozenset({B})), "dns", f"is {B}, and n1", "cache"),
        (facts(has_helper=False), "nfs-tools", "no mount.nfs4", "nfs-common"),
        (
            facts(replace(WELL, stack=(replace(nfs(A), options=f"soft,vers=3,addr={A}"),))),
            "options", "soft, vers=3", "vers=4.2,hard",
        ),
        (
            facts(replace(WELL, elsewhere=(nfs(B, "0:49", "/srv/www"),))),
            "binds", f"/srv/www still shows {B}", "client.binds",
        ),
        (
            facts(others=((Namespace("mnt:[1]", (7,), ("box.service",), ()), (nfs(B),)),)),
            "containers", "box.service: /x/data", "restart",
        ),
        (facts(old_users=(USE,)), "handles", "mysqld (pid 41, mysql.service", "restart_units"),
        (facts(hanging=(USE,)), "hanging", "mysqld (pid 41", "kill -9"),
    ],
)  # fmt: skip
def test_doctor_names_cause_evidence_and_fix(
    told: Facts, check: str, evidence: str, fix: str
) -> None:
    bad = {finding.check: finding for finding in examine(told, CONFIG) if not finding.ok}
    assert evidence in bad[check].evidence
    assert fix in bad[check].fix


def test_doctor_looks_for_the_mount_helper_where_mount_does_on_nixos_as_well() -> None:
    assert {"/run/current-system/sw/bin", "/sbin", "/usr/sbin"} <= set(HELPERS.split(":"))
