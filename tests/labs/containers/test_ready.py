"""What a takeover would fail at is found on the node that would serve, before anybody waits.

The kernel's server, and what exportfs says of its exports, are in the kernel lab.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from standfast.events.events import Kind
from tests.labs.containers.cluster import AGENT, LEASE, VOLUME
from tests.labs.containers.node import Container
from tests.labs.containers.nomad import WithNomad
from tests.support.figures import note
from tests.support.null_server import BESIDE_THE_FENCE, SOURCE
from tests.support.pace import patient

CONFIG = f"/etc/standfast/{VOLUME}.toml"
KEYS = "/root/.ssh/authorized_keys"
STANDBY = "/persist/services-standby"
LOOK_S = 2.0
"""A standby's agent looks at its node each second."""


@dataclass(frozen=True)
class Scene:
    cluster: WithNomad
    primary: Container
    target: Container
    third: Container


def masked(node: Container, unit: str) -> Iterator[None]:
    node.run("systemctl", "mask", "--runtime", "--quiet", unit)
    yield
    node.run("systemctl", "unmask", "--runtime", "--quiet", unit)


def listening(
    node: Container, name: str, port: int, program: Sequence[str] = ("-m", "http.server")
) -> Iterator[None]:
    node.run("systemd-run", f"--unit={name}", "python3", *program, str(port))
    node.wait_for(lambda: f":{port}" in node.sh("ss -Hltn"), 30.0, "it listens")
    yield
    node.run("systemctl", "stop", name)


def the_lease_unit_is_masked(scene: Scene) -> Iterator[None]:
    yield from masked(scene.target, f"{LEASE}.service")


def the_agent_is_down(scene: Scene) -> Iterator[None]:
    scene.target.run("systemctl", "stop", AGENT)
    yield
    scene.target.run("systemctl", "start", AGENT)
    scene.cluster.wait_for_role(scene.target.name, "standby")


def it_has_no_snapshot(scene: Scene) -> Iterator[None]:
    """Nor any of its own: it may have been primary before. Nor does it get one meanwhile."""
    rename = "cd /persist; for s in {}services@*; do [ ! -e $s ] || mv $s {}; done"
    scene.target.sh(f"mv {STANDBY} {STANDBY}.away && mkdir {STANDBY} && chattr +i {STANDBY}")
    scene.target.sh(rename.format("", "away.$s"))
    yield
    scene.target.sh(rename.format("away.", "${s#away.}"))
    scene.target.sh(f"chattr -i {STANDBY}; rm -rf {STANDBY} && mv {STANDBY}.away {STANDBY}")


def its_file_system_takes_no_writes(scene: Scene) -> Iterator[None]:
    scene.target.sh("mount -o remount,ro /persist")
    yield
    scene.target.sh("mount -o remount,rw /persist")


def its_file_system_is_nearly_full(scene: Scene) -> Iterator[None]:
    free = int(scene.target.sh("df -B1 --output=avail /persist | tail -1"))
    scene.target.sh(f"fallocate -l {free - 20 * 2**20} /persist/filler; sync")
    yield
    scene.target.sh("rm /persist/filler; sync")


def another_program_has_the_port(scene: Scene) -> Iterator[None]:
    yield from listening(scene.target, "squatter", 2049)


def another_server_is_registered_and_answers(scene: Scene) -> Iterator[None]:
    """To the target, which reaches it in itself."""
    node, at = scene.third, f"-address={BESIDE_THE_FENCE}"
    for _ in listening(scene.target, "by-hand", 2049, ("-c", SOURCE, BESIDE_THE_FENCE)):
        node.consul("services", "register", f"-name={VOLUME}", "-id=by-hand", at, "-port=2049")
        scene.target.wait_for(
            lambda: is_listed(scene.target, on=node),
            30.0,
            "the entry is in the catalogue",
        )
        yield
        node.consul("services", "deregister", "-id=by-hand")


def is_listed(asked: Container, on: Container) -> bool:
    listed = asked.consul_get(f"health/service/{VOLUME}")
    return any((e["Node"]["Node"], e["Service"]["ID"]) == (on.name, "by-hand") for e in listed)


def a_client_has_no_address(scene: Scene) -> Iterator[None]:
    node = scene.target
    text = scene.cluster.configuration(node)
    changed = text.replace('clients = ["192', 'clients = ["nobody.invalid", "192')
    assert changed != text
    node.write(CONFIG, changed)
    node.run("systemctl", "restart", AGENT)
    scene.cluster.wait_for_role(node.name, "standby")
    yield
    node.write(CONFIG, text)
    node.run("systemctl", "restart", AGENT)
    scene.cluster.wait_for_role(node.name, "standby")


def there_is_no_way_back(scene: Scene) -> Iterator[None]:
    own = f"root@{scene.target.name}"
    scene.primary.sh(f"sed -i '/{own}$/s/^/#/' {KEYS}; grep '^#.*{own}$' {KEYS}")
    yield
    scene.primary.sh(f"sed -i '/{own}$/s/^#//' {KEYS}")


def consul_hides_it(scene: Scene) -> Iterator[None]:
    scene.target.consul("maint", "-enable")
    yield
    scene.target.consul("maint", "-disable")


def it_is_on_hold(scene: Scene) -> Iterator[None]:
    scene.cluster.standfast(scene.primary.name, "standby", "hold", scene.target.name)
    yield
    scene.cluster.standfast(scene.primary.name, "standby", "release", scene.target.name)


def a_directory_is_at_the_live_path(scene: Scene) -> Iterator[None]:
    scene.target.sh("mkdir /persist/services")
    yield
    scene.target.sh("rmdir /persist/services")


def the_file_of_another_volume_is_broken(scene: Scene) -> Iterator[None]:
    scene.target.write("/etc/standfast/media.toml", "cluster =")
    yield
    scene.target.run("rm", "/etc/standfast/media.toml")


REFUSALS: dict[str, tuple[Callable[[Scene], Iterator[None]], str]] = {
    "lease": (the_lease_unit_is_masked, "is masked"),
    "inspection": (the_agent_is_down, "could not be asked what is in its way"),
    "snapshot": (it_has_no_snapshot, "no published snapshot"),
    "read-only": (its_file_system_takes_no_writes, "takes no writes"),
    "space": (its_file_system_is_nearly_full, "left for data"),
    "disk": (a_directory_is_at_the_live_path, "is no btrfs subvolume"),
    "volumes": (the_file_of_another_volume_is_broken, "media.toml: it is not TOML"),
    "port": (another_program_has_the_port, "another program listens at TCP port 2049"),
    "service": (another_server_is_registered_and_answers, "services deregister -id=by-hand"),
    "clients": (a_client_has_no_address, "no address is known of nobody.invalid"),
    "way-back": (there_is_no_way_back, "nothing can be replicated to"),
    "hidden": (consul_hides_it, "maint -disable"),
    "hold": (it_is_on_hold, "is on hold by"),
}


LOOKED_AT = ("snapshot", "read-only")
"""What the agent looks at by itself, and not when it is asked."""


class Refused:
    """Real switchovers, of which not one stopped anything."""

    def __init__(self, cluster: WithNomad, name: str) -> None:
        self._cluster, self._name = cluster, name
        self.count = 0

    def ask(self, target: str, words: str) -> None:
        """A switchover is refused with these words."""
        self._check(words, "--to", target)
        self.count += 1

    def ask_only(self, target: str, words: str) -> None:
        """A dry run says the same."""
        self._check(words, "--to", target, "--dry-run")

    def _check(self, words: str, *argv: str) -> None:
        said = self._cluster.standfast(self._name, "switchover", *argv, check=False)
        assert words in said, f"{' '.join(argv)}: {said}"


def server_of(node: Container) -> str:
    return node.run("systemctl", "show", "--property=MainPID", "--value", "nfs-server").stdout


@pytest.mark.timeout(600)
def test_switchovers_to_a_node_that_is_not_ready_are_refused_before_anybody_waits(
    cluster: WithNomad,
) -> None:
    """Each kind on each of two standbys at once, as planting and mending is what takes time."""
    name = cluster.primary()
    primary = cluster[name]
    standbys = [node for node in cluster.storage if node.name != name]
    scenes = [
        Scene(cluster, primary, target, third) for target, third in (standbys, reversed(standbys))
    ]
    epoch, since, pid = cluster.epoch(name), cluster.moment(name), server_of(primary)
    refused = Refused(cluster, name)
    with cluster.lab.client.stream([primary.address], "ready", 0.05, patient(3.0)) as stream:
        stream.wait_for_ack()
        for check, (plant, words) in REFUSALS.items():
            with ExitStack() as planted:
                for scene in scenes:
                    planted.enter_context(contextmanager(plant)(scene))
                if check in LOOKED_AT:
                    time.sleep(LOOK_S)
                for node in standbys:
                    refused.ask(node.name, words)
                refused.ask_only(standbys[0].name, words)
        cluster.wait_for_role(name, "primary")
        stream.wait_for_ack(after_s=time.monotonic())
        assert stream.errors() == []
    assert refused.count == 26
    assert (cluster.primary(), cluster.epoch(name)) == (name, epoch)
    assert server_of(primary) == pid, "the server was not stopped"
    assert cluster.entries(name, Kind.SWITCHOVER_BEGUN, since=since) == []
    gap_s = stream.longest_gap_s()
    note(f"{refused.count} of {refused.count} switchovers were refused; longest gap {gap_s:.1f} s")


@pytest.mark.timeout(300)
def test_a_leftover_of_a_runbook_is_told_and_keeps_no_switchover_from_its_end(
    cluster: WithNomad,
) -> None:
    """It is on the old node, where the primary answered before: an outage without an end, once."""
    name = cluster.primary()
    target = cluster.standby()
    cluster.wait_for_voters()
    cluster[name].consul("services", "register", f"-name={VOLUME}", "-id=by-hand", "-port=2049")
    try:

        def told() -> bool:
            return "a leftover" in cluster.standfast(name, "status", check=False)

        cluster.lab.wait_for(told, patient(90.0), "the standbys tell of the leftover", 1.0)
        said = cluster.standfast(name, "switchover", "--to", target.name)
        assert f"{target.name} is primary" in said
        assert cluster.standfast(target.name, "status").startswith(f"{VOLUME}: {target.name} is")
    finally:
        cluster[name].consul("services", "deregister", "-id=by-hand")


@pytest.mark.timeout(300)
def test_a_failover_is_promised_by_who_would_do_it_and_not_after_that_is_gone(
    cluster: WithNomad,
) -> None:
    name = cluster.primary()
    others = [node for node in cluster.storage if node.name != name]

    def answer(says: str) -> Callable[[], bool]:
        return lambda: says in cluster.standfast(name, "status", check=False)

    wait_for = cluster.lab.wait_for
    wait_for(answer("failover:  yes"), patient(90.0), "a standby says that it would", 1.0)
    try:
        for node in others:
            node.run("systemctl", "stop", AGENT)
        wait_for(answer("NO (no-standby-ready)"), patient(120.0), "their words grow old", 1.0)
    finally:
        for node in others:
            node.run("systemctl", "start", AGENT)
    wait_for(answer("failover:  yes"), patient(90.0), "they say it again", 1.0)
