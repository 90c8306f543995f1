"""What the packages' scripts do at installation, upgrade, removal and purge, in a directory instead
of / and with stand-ins for systemd, the firewall and the program itself."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tests.support.pace import patient
from tests.support.scripts import script

DEBIAN = CHECKOUT / "debian"
VOLUME = "data-services"
KEY = "ssh-ed25519 AAAAC3Nza standfast-lab-n2"
LINE = f'restrict,from="192.168.1.3",command="standfast receive {VOLUME} --from n2" {KEY}'
# list-units prints what the file `active` has of a pattern, and `stop` takes it out of there.
SYSTEMCTL = """\
echo "systemctl $*" >>log
verb=; patterns=
for word; do
  case $word in -*) ;; *) if [ -z "$verb" ]; then verb=$word; else patterns="$patterns $word"; fi ;; esac
done
for pattern in $patterns; do
  while read -r unit; do
    case $unit in
      $pattern | $pattern.service)
        case $verb in
          list-units) echo "$unit loaded active running Something" ;;
          is-active) exit 0 ;;
          stop) grep -vxF "$unit" active >rest; cp rest active ;;
        esac
        ;;
    esac
  done <active
done
[ "$verb" != is-active ]
"""  # noqa: E501


class Node:
    """A directory that the scripts take for /, which is also where the stand-ins are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for directory in ("run/systemd/system", "etc/systemd/system", "root/.ssh", "var/lib"):
            (root / directory).mkdir(parents=True)
        (root / "active").touch()
        self.program("systemctl", SYSTEMCTL)
        self.program("deb-systemd-invoke", 'exec systemctl "$@"')
        self.program("standfast", 'echo "standfast $*" >>log')
        self.program("nft", 'echo "nft $*" >>log; [ "$1" != list ] || test -e table')
        for name in ("iptables-legacy", "ip6tables-legacy", "ipset", "dpkg-query"):
            self.program(name, "exit 1")

    def program(self, name: str, text: str) -> None:
        script(self.root / "bin" / name, text)

    def active(self, *units: str) -> None:
        (self.root / "active").write_text("".join(f"{unit}\n" for unit in units))

    def still_active(self) -> list[str]:
        return (self.root / "active").read_text().split()

    def put(self, path: str, text: str = "") -> Path:
        there = self.root / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text)
        return there

    def enable(self, unit: str, target: str = "multi-user.target") -> Path:
        link = self.root / f"etc/systemd/system/{target}.wants/{unit}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/usr/lib/systemd/system/any")
        return link

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        text = (DEBIAN / name).read_text()
        text = re.sub(r'(?<=[\s="])/(run|etc|var|root|usr)/', rf"{self.root}/\1/", text)
        return subprocess.run(
            ["sh", "-c", text, name, *arguments],
            cwd=self.root,
            env={"PATH": f"{self.root}/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=patient(30.0),
        )

    def done(self, name: str, *arguments: str) -> str:
        ended = self.run(name, *arguments)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout + ended.stderr

    def log(self, word: str = "") -> list[str]:
        path = self.root / "log"
        said = path.read_text().splitlines() if path.exists() else []
        return [line for line in said if word in line]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "root")


# Installation


@pytest.mark.parametrize("package", ["standfast", "standfast-client"])
def test_an_installation_starts_enables_and_restarts_nothing(node: Node, package: str) -> None:
    node.active("standfast-agent@other.service", "nfs-server.service")
    node.done(f"{package}.postinst", "configure")
    assert node.log() == ["systemctl daemon-reload"]


def test_an_nfs_server_that_comes_along_is_not_started_and_is_left_disabled(node: Node) -> None:
    mask = node.root / "run/systemd/system/nfs-server.service"
    node.done("standfast.preinst", "install")
    assert str(mask.readlink()) == "/dev/null", "its package comes now, and would start it"
    node.done("standfast.postinst", "configure")
    assert not os.path.lexists(mask)
    assert node.log("nfs-server") == ["systemctl -q is-active nfs-server.service",
                                      "systemctl -q disable nfs-server.service"]  # fmt: skip


@pytest.mark.parametrize("status", ["installed 1:2.6.2-4", "unpacked 1:2.6.2-4"])
def test_an_nfs_server_that_was_there_is_left_alone(node: Node, status: str) -> None:
    node.program("dpkg-query", f"echo '{status}'")
    node.done("standfast.preinst", "install")
    assert not os.path.lexists(node.root / "run/systemd/system/nfs-server.service")
    node.done("standfast.postinst", "configure")
    assert not node.log("disable")


def test_an_nfs_server_that_runs_is_left_alone_whoever_installed_it(node: Node) -> None:
    node.active("nfs-server.service")
    node.done("standfast.preinst", "install")
    assert not os.path.lexists(node.root / "run/systemd/system/nfs-server.service")


def test_an_installation_that_fails_leaves_no_mask(node: Node) -> None:
    node.done("standfast.preinst", "install")
    node.done("standfast.postrm", "abort-install")
    assert list((node.root / "run/systemd/system").iterdir()) == []


def test_a_mask_of_an_operator_stays(node: Node) -> None:
    mask = node.root / "run/systemd/system/nfs-server.service"
    mask.symlink_to("/dev/null")
    node.done("standfast.preinst", "install")
    node.done("standfast.postinst", "configure")
    assert mask.is_symlink()


def test_another_installation_that_comes_first_is_named(node: Node) -> None:
    node.put("usr/local/bin/standfast")
    assert "usr/local/bin/standfast" in node.done("standfast-client.postinst", "configure")


# Upgrade


def test_an_upgrade_restarts_the_lease_process_before_the_agent(node: Node) -> None:
    node.active(f"standfast-agent@{VOLUME}.service", f"standfast-lease@{VOLUME}.service")
    node.done("standfast.postinst", "configure", "0.0.9")
    restarts = [line.split()[-1] for line in node.log("restart")]
    assert restarts == [
        "standfast-lease@*.service",
        "standfast-agent@*.service",
        "standfast-receive.service",
        "standfast-exporter.service",
    ]
    assert all(" try-restart " in line for line in node.log("restart")), "what was off stays off"


def test_an_upgrade_restarts_nothing_while_the_configuration_is_not_accepted(node: Node) -> None:
    node.program("standfast", "echo 'min_reign: unknown key' >&2; exit 2")
    node.active(f"standfast-agent@{VOLUME}.service", f"standfast-lease@{VOLUME}.service")
    said = node.done("standfast.postinst", "configure", "0.0.9")
    assert "min_reign: unknown key" in said and "NOTHING WAS RESTARTED" in said
    assert not node.log("restart")


def test_an_upgrade_of_a_node_that_is_not_configured_asks_nothing(node: Node) -> None:
    node.program("standfast", "exit 2")
    assert node.done("standfast.postinst", "configure", "0.0.9") == ""


@pytest.mark.parametrize("words", [("upgrade", "0.2.0"), ("deconfigure", "in-favour", "x")])
def test_an_upgrade_stops_nothing(node: Node, words: tuple[str, ...]) -> None:
    node.active(f"standfast-agent@{VOLUME}.service", f"standfast-lease@{VOLUME}.service")
    for package in ("standfast", "standfast-client"):
        node.done(f"{package}.prerm", *words)
        node.done(f"{package}.postrm", "upgrade", "0.2.0")
    assert node.log() == ["systemctl daemon-reload"] * 2


def test_an_upgrade_restarts_what_follows_the_service_unless_it_would_not_start(
    node: Node,
) -> None:
    node.active(f"standfast-watch@{VOLUME}.service")
    node.done("standfast-client.postinst", "configure", "0.0.9")
    assert node.log("restart") == ["systemctl try-restart standfast-watch@*.service"]
    node.program("standfast", "echo 'foo: unknown key' >&2; exit 2")
    assert "foo: unknown key" in node.done("standfast-client.postinst", "configure", "0.0.9")
    assert len(node.log("restart")) == 1


# Removal


def test_a_removal_hands_the_role_over_before_anything_stops(node: Node) -> None:
    node.active(f"standfast-agent@{VOLUME}.service", f"standfast-lease@{VOLUME}.service")
    node.program("standfast", f'echo "standfast $*" >>log; sed -i /lease/d {node.root}/active')
    node.done("standfast.prerm", "remove")
    steps = [line for line in node.log() if " stop " in line or line.startswith("standfast ")]
    assert steps[0].startswith(f"standfast switchover --volume {VOLUME} ")
    assert steps[1] == "systemctl stop standfast-agent@*.service"
    assert node.still_active() == []


def test_a_removal_is_refused_where_nobody_takes_the_role(node: Node) -> None:
    units = [f"standfast-agent@{VOLUME}.service", f"standfast-lease@{VOLUME}.service"]
    node.active(*units)
    node.put("table")
    node.program("standfast", "echo 'refused: no-standby-ready' >&2; exit 1")
    ended = node.run("standfast.prerm", "remove")
    assert ended.returncode == 1
    for word in ("no-standby-ready", "NOT REMOVED", VOLUME, "standfast demote"):
        assert word in ended.stderr
    assert node.still_active() == units
    assert not node.log("stop") and not node.log("nft")


def test_a_removal_is_refused_while_a_volume_is_exported(node: Node) -> None:
    claim = node.put(f"run/standfast/fence/{VOLUME}.json", '{"v": 1, "until": 0.0}')
    ended = node.run("standfast.prerm", "remove")
    assert (ended.returncode, claim.exists()) == (1, True)
    assert f"still exports {VOLUME}" in ended.stderr


def test_a_removal_is_refused_where_the_role_came_at_the_last_moment(node: Node) -> None:
    agent, lease = f"standfast-agent@{VOLUME}.service", f"standfast-lease@{VOLUME}.service"
    node.active(agent)
    node.program("deb-systemd-invoke", f"echo {lease} >>{node.root}/active")
    ended = node.run("standfast.prerm", "remove")
    assert ended.returncode == 1 and "became primary" in ended.stderr
    assert node.log("start") == [f"systemctl start {agent}"]


def test_a_removal_is_refused_where_nothing_may_be_stopped(node: Node) -> None:
    node.active(f"standfast-agent@{VOLUME}.service")
    node.put("table")
    node.program("deb-systemd-invoke", "echo 'policy-rc.d returned 101, not running' >&2")
    ended = node.run("standfast.prerm", "remove")
    assert ended.returncode == 1 and "policy-rc.d forbid" in ended.stderr
    assert not node.log("nft"), "who runs on has its fence"


def test_a_removal_takes_away_what_keeps_an_nfs_server_from_being_a_plain_one(node: Node) -> None:
    node.active(f"standfast-agent@{VOLUME}.service", "standfast-exporter.service")
    node.put("table")
    enabled = [node.enable(f"standfast-agent@{VOLUME}.service"),
               node.enable("standfast-receive.socket", "sockets.target")]  # fmt: skip
    client = node.enable(f"standfast-watch@{VOLUME}.service")
    timer = f"run/systemd/system/standfast-replicate@{VOLUME}:n2.timer.d/interval.conf"
    gone = [
        node.put("etc/nfs.conf.d/standfast.conf", "[nfsd]\nvers3=n\n"),
        node.put(f"etc/exports.d/standfast-{VOLUME}.exports"),
        node.put(timer, "[Timer]\n"),
    ]
    stay = [node.put(path) for path in ("etc/nfs.conf.d/local.conf", "etc/exports.d/mine.exports")]
    copy = node.put(
        "etc/systemd/system/nfs-ganesha.service.d/guard.conf",
        "[Service]\nExecStartPre=nfs-server-guard\nNice=1\n",
    )
    node.done("standfast.prerm", "remove")
    assert "nft delete table inet standfast" in node.log()
    assert node.still_active() == []
    assert [path for path in [*enabled, *gone] if os.path.lexists(path)] == []
    assert all(path.exists() for path in stay) and client.is_symlink()
    assert copy.read_text() == "[Service]\nNice=1\n"


def test_the_fence_of_older_kernels_is_taken_away_too(node: Node) -> None:
    for name in ("iptables-legacy", "ip6tables-legacy", "ipset"):
        # A jump is there once.
        node.program(name, f'echo "{name} $*" >>log; case $* in *-D*) test ! -e "{name}$4" && '
                           f'touch "{name}$4" ;; esac')  # fmt: skip
    node.done("standfast.prerm", "remove")
    for name in ("iptables-legacy", "ip6tables-legacy"):
        for chain in ("INPUT -j standfast", "OUTPUT -j standfast-out"):
            own = chain.split()[-1]
            ends = [f"-D {chain}", f"-F {own}", f"-X {own}"]
            order = [f"{name} -w 2 {end}" for end in ends]
            assert [line for line in node.log(name) if line in order][:1] == order[:1]
            assert set(order) <= set(node.log(name))
    assert "ipset destroy standfast" in node.log()


def test_every_unit_of_a_storage_node_is_stopped_and_disabled_by_a_removal() -> None:
    [ours] = re.findall(r"(?m)^OURS='(.*)'$", (DEBIAN / "standfast.prerm").read_text())
    lines = (DEBIAN / "standfast.install").read_text()
    units = re.findall(r"systemd/standfast-([a-z]+@?)\.(?:service|timer|socket) ", lines)
    assert set(ours.split()) == set(units)
    [purged] = re.findall(r"for name in (.*); do", (DEBIAN / "standfast.postrm").read_text())
    assert purged == ours


def test_a_client_that_loses_the_package_keeps_its_mount(node: Node) -> None:
    units = [f"standfast-watch@{VOLUME}.service", "standfast-resync.timer"]
    node.active(*units, f"{VOLUME}.mount")
    links = [node.enable(units[0]), node.enable(units[1], "timers.target")]
    mount = node.put(
        f"etc/systemd/system/{VOLUME}.mount", f"Description=Standfast: volume {VOLUME}"
    )
    node.done("standfast-client.prerm", "remove")
    assert node.still_active() == [f"{VOLUME}.mount"]
    assert [link for link in links if link.is_symlink()] == []
    assert mount.exists()


# Purge


def test_a_purge_deletes_state_keys_and_our_lines_and_nobody_elses(node: Node) -> None:
    node.put(f"var/lib/standfast/{VOLUME}/epoch", "4\n")
    key = node.put("etc/standfast/replication_key", "secret")
    config = node.put(f"etc/standfast/{VOLUME}.toml")
    others = f'# {LINE}\n{KEY} root@n2\ncommand="standfast receiver" {KEY}\n'
    keys = node.put("root/.ssh/authorized_keys", f"{others}{LINE}\n")
    keys.chmod(0o600)
    node.done("standfast.postrm", "purge")
    assert not (node.root / "var/lib/standfast").exists()
    assert not key.exists()
    assert config.exists(), "a client goes on with it"
    assert keys.read_text() == others
    assert keys.stat().st_mode & 0o777 == 0o600


def test_a_removal_without_a_purge_keeps_the_configuration_and_the_state(node: Node) -> None:
    state = node.put(f"var/lib/standfast/{VOLUME}/epoch", "4\n")
    config = node.put(f"etc/standfast/{VOLUME}.toml")
    keys = node.put("root/.ssh/authorized_keys", f"{LINE}\n")
    for package in ("standfast", "standfast-client"):
        node.done(f"{package}.prerm", "remove")
        node.done(f"{package}.postrm", "remove")
    assert state.exists() and config.exists() and keys.read_text() == f"{LINE}\n"


def test_a_purge_deletes_nothing_that_may_be_data(node: Node) -> None:
    data = node.put("var/lib/standfast/services/file", "data")
    node.program("mountpoint", "case $2 in */services) exit 0 ;; esac; exit 1")
    assert "stays" in node.done("standfast.postrm", "purge")
    assert data.read_text() == "data"


def test_a_purge_of_the_client_deletes_the_configuration_and_the_units_that_we_wrote(
    node: Node,
) -> None:
    node.put(f"etc/standfast/{VOLUME}.toml")
    ours = node.put(
        f"etc/systemd/system/{VOLUME}.mount", f"Description=Standfast: volume {VOLUME}\n"
    )
    other = node.put("etc/systemd/system/srv.mount", "Description=After Standfast: volume x\n")
    node.done("standfast-client.postrm", "purge")
    assert not (node.root / "etc/standfast").exists()
    assert not ours.exists() and other.exists()
