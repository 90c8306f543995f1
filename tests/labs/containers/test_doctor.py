"""`standfast doctor` on real nodes: green where all is well, and each cause of a bad finding once.

The tests share one cluster, on which nothing else was done before, and run in this order: first
nothing is wrong, then one cause after the other is planted and undone, in the end all is well
again. Which checks are seen here, and which elsewhere, is in tests/unit/test_doctor_is_seen.py.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from standfast.doctor.causes import CAUSES
from tests.labs.containers.cluster import AGENT, FAST, LEASE, VOLUME
from tests.labs.containers.lab import Lab
from tests.labs.containers.nomad import PORT, SERVER, WithNomad, with_nomad
from tests.support.commands import LabError
from tests.support.doctor_scenes import PRIMARY, SCENES, STANDBY, THIRD, Sight
from tests.support.figures import note

pytestmark = pytest.mark.timeout(300)
WATCH = f"standfast-watch@{VOLUME}"
SEEN_S = 30.0
"""Within these a cause is seen by whoever asks, and within these it is over."""
RESTARTS_S = 180.0
"""So long restarts count."""
CLOCK = ("node", "clock")
TIME_ERROR = 5
"""Of timex.h."""


def is_synchronised() -> bool:
    """Whether the host's kernel takes its clock for synchronised: the status of adjtimex(2)."""
    timex = ctypes.create_string_buffer(512)  # all zeros: nothing is set
    return bool(ctypes.CDLL(None).adjtimex(timex) != TIME_ERROR)


IS_SYNCHRONISED = is_synchronised()
Finding = dict[str, Any]


@pytest.fixture(scope="module")
def examined(lab_factory: Callable[..., Lab]) -> Iterator[WithNomad]:
    lab = lab_factory()
    with with_nomad(lab, FAST, "failover_cooldown = 0\nfailover_after = 60") as made:
        made.wait_for_voters()
        made.move_role(to_consul_leader=False)
        yield made
    lab.close()


def doctor(cluster: WithNomad, name: str) -> list[Finding]:
    done = cluster[name].run("standfast", "doctor", "--json", check=False, timeout_s=100.0)
    doc = json.loads(done.stdout)
    findings: list[Finding] = doc["findings"]
    assert doc["ok"] == all(finding["ok"] for finding in findings) == (done.returncode == 0)
    return findings


def bad(cluster: WithNomad, name: str) -> list[Finding]:
    """Of `clock` what isn't so: the nodes have the host's, which nothing here can set right."""
    return [
        finding
        for finding in doctor(cluster, name)
        if finding["ok"] == ((finding["group"], finding["check"]) == CLOCK and not IS_SYNCHRONISED)
    ]


def wait_until(
    cluster: WithNomad, name: str, judge: Callable[[list[Finding]], object], timeout_s: float
) -> None:
    """Until nothing is left for the judge of a node's bad findings; both are in the error."""
    last: list[Finding] = []
    left: list[object] = []

    def is_well() -> bool:
        last[:] = bad(cluster, name)
        left[:] = [judge(last)]
        return not left[0]

    try:
        cluster.lab.wait_for(is_well, timeout_s, f"doctor of {name}", 0.3)
    except LabError as error:
        told = json.dumps(last, indent=1)
        raise AssertionError(f"{name}: {left} is left; what is bad:\n{told}") from error


def wait_until_green(cluster: WithNomad, timeout_s: float) -> None:
    """Every check of every node, within one time; all of them at once in the end."""
    deadline = time.monotonic() + timeout_s
    names = [node.name for node in cluster.storage]
    for name in names:
        wait_until(cluster, name, lambda found: found, max(1.0, deadline - time.monotonic()))
    for name in names:
        wait_until(cluster, name, lambda found: found, SEEN_S)


def parts(cluster: WithNomad) -> dict[str, str]:
    """The nodes' names by their parts; the third is a standby on which less is done."""
    primary = cluster.primary()
    standby, third = (node.name for node in cluster.storage if node.name != primary)
    return {PRIMARY: primary, STANDBY: standby, THIRD: third}


def run(cluster: WithNomad, told: Mapping[str, str], scripts: Mapping[str, str]) -> None:
    for part, script in scripts.items():
        node = cluster[told[part]]
        env = {
            **told,
            "ADDRESS": node.address,
            "VOLUME": VOLUME,
            "AGENT": AGENT,
            "LEASE": LEASE,
            "CONFIG": f"/etc/standfast/{VOLUME}.toml",
            "NOMAD": SERVER,
            "OWN_NOMAD": f"http://{cluster.nomad.addresses[node.name]}:{PORT}",
            "PYTHON": sys.executable,
        }
        node.run("/bin/bash", "-ec", script, env=env, timeout_s=60.0)


def is_seen(sight: Sight, findings: list[Finding], told: Mapping[str, str]) -> bool:
    words = [word.format(VOLUME=VOLUME, **told) for word in sight.words]
    cause = CAUSES[sight.group, sight.check]
    return any(
        all(word in f"{finding['evidence']} -> {finding['fix']}" for word in words)
        and finding["cause"] == cause
        and finding["fix"] != ""
        for finding in findings
        if (finding["group"], finding["check"]) == (sight.group, sight.check)
    )


def by_node(sights: tuple[Sight, ...]) -> dict[str, list[Sight]]:
    return {
        part: [sight for sight in sights if sight.asked == part]
        for part in dict.fromkeys(sight.asked for sight in sights)
    }


def wait_until_seen(cluster: WithNomad, told: Mapping[str, str], sights: tuple[Sight, ...]) -> None:
    """Each at some look: what is tried again is no trouble meanwhile."""
    for part, wanted in by_node(sights).items():

        def unseen(found: list[Finding], wanted: list[Sight] = wanted) -> list[Sight]:
            wanted[:] = [sight for sight in wanted if not is_seen(sight, found, told)]
            return list(wanted)

        wait_until(cluster, told[part], unseen, SEEN_S)


def wait_until_over(cluster: WithNomad, told: Mapping[str, str], sights: tuple[Sight, ...]) -> None:
    for part, wanted in by_node(sights).items():
        names = {(sight.group, sight.check) for sight in wanted if not sight.lingers}

        def there(found: list[Finding], names: set[tuple[str, str]] = names) -> object:
            return names & {(finding["group"], finding["check"]) for finding in found}

        wait_until(cluster, told[part], there, SEEN_S)


def test_on_a_healthy_cluster_every_check_of_every_node_is_well(examined: WithNomad) -> None:
    examined.wait_until_followed(examined.primary())
    wait_until_green(examined, 60.0)


def test_a_clock_is_told_as_the_kernel_has_it(examined: WithNomad) -> None:
    for node in examined.storage:
        [clock] = [each for each in doctor(examined, node.name) if each["check"] == "clock"]
        assert clock["ok"] == IS_SYNCHRONISED, clock
        assert IS_SYNCHRONISED or "nothing synchronises it" in clock["evidence"]


def test_one_restart_of_a_unit_is_no_finding(examined: WithNomad) -> None:
    node = examined[parts(examined)[THIRD]]
    node.run("systemctl", "kill", "--signal=KILL", WATCH)

    def restarted() -> bool:
        shown = node.run("systemctl", "show", "-P", "NRestarts", WATCH).stdout.strip()
        return shown == "1" and node.is_active(WATCH)

    node.wait_for(restarted, 30.0, "systemd has started it again")
    findings = {(each["group"], each["check"]): each for each in doctor(examined, node.name)}
    assert findings["node", "restarts"]["ok"], findings["node", "restarts"]
    assert findings["node", "units"]["ok"], findings["node", "units"]


@pytest.mark.parametrize("what", SCENES)
def test_a_cause_is_found_by_its_name_as_long_as_it_is_there(
    examined: WithNomad, what: str
) -> None:
    scene, told = SCENES[what], parts(examined)
    assert all(told.values()), told
    try:
        run(examined, told, scene.do)
        wait_until_seen(examined, told, scene.sights)
    finally:
        run(examined, told, scene.undo)
    wait_until_over(examined, told, scene.sights)


def test_a_primary_where_consul_is_led_as_well_is_told_apart(examined: WithNomad) -> None:
    sights = (Sight("nomad", "leaders", ("{PRIMARY} is primary and leader of Consul",), PRIMARY),)
    examined.move_role(to_consul_leader=True)
    wait_until_seen(examined, parts(examined), sights)
    examined.move_role(to_consul_leader=False)
    wait_until_over(examined, parts(examined), sights)


def test_what_only_a_replaced_primary_has_is_named_until_it_is_deleted(
    examined: WithNomad,
) -> None:
    told = parts(examined)
    node = examined[told[PRIMARY]]
    sights = (Sight("service", "diverged", ("/persist/services.diverged-",), PRIMARY),)
    examined.wait_until_replicated(node.name)
    node.freeze()
    try:
        examined.lab.wait_for(
            lambda: "primary" in map(examined.role, (told[STANDBY], told[THIRD])),
            60.0,
            "somebody takes over",
        )
    finally:
        node.thaw()
    examined.wait_for_role(node.name, "standby")
    wait_until_seen(examined, told, sights)
    node.sh("btrfs subvolume delete /persist/services.diverged-*")
    wait_until_over(examined, told, sights)


@pytest.mark.timeout(400)
def test_in_the_end_every_check_of_every_node_is_well_again(examined: WithNomad) -> None:
    """On a slow machine a server that didn't start may have cost the role: what was kept aside then
    goes as well. Units that failed stay so until somebody says otherwise, as doctor does. Restarts
    count for three minutes."""
    began = time.monotonic()
    for node in examined.storage:
        node.sh("btrfs subvolume delete /persist/services.diverged-* || true")
        node.run("systemctl", "reset-failed")
    examined.move_role(to_consul_leader=False)
    wait_until_green(examined, RESTARTS_S + 60.0)
    note(f"doctor: all was well again {time.monotonic() - began:.1f} s after the last cause")
