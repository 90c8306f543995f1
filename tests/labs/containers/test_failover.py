"""Changes of the role with real parts: what the smoke test, with its fast timings, leaves open."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from signal import SIGALRM

import pytest

from standfast.events.events import Kind
from tests.labs.containers.cluster import AGENT, DEFAULT, FAST, LEASE
from tests.labs.containers.drills import power_cut
from tests.labs.containers.nomad import WithNomad
from tests.labs.shared.client import EXPORT
from tests.support.figures import note

HOOKS = "/etc/standfast/hooks.d"
TELLS = "#!/bin/sh\necho $STANDFAST_EVENT $STANDFAST_EPOCH $STANDFAST_NOTE >> /run/told\n"
GUARDS = 15


@pytest.fixture
def by_default(cluster: WithNomad) -> Iterator[WithNomad]:
    """The cluster with the default timings."""
    cluster.use(DEFAULT)
    yield cluster
    cluster.repair()
    cluster.use(FAST)


@pytest.mark.timeout(300)
def test_a_power_cut_with_the_default_timings_is_taken_over_and_loses_nothing_replicated(
    by_default: WithNomad,
) -> None:
    takeover = power_cut(by_default, "default")
    takeover.check(by_default)
    note(
        f"power cut, default timings: nobody served for {takeover.writers.longest_pause_s():.1f} s"
    )


@pytest.mark.timeout(300)
def test_a_switchover_names_who_still_writes_and_serves_again(cluster: WithNomad) -> None:
    old = cluster.primary()
    node, to = cluster[old], cluster.standby().name
    epoch = cluster.epoch(old)
    # A program with a mount of its own, as in a container: it would go on writing unseen.
    held = f"exec 9>>{EXPORT}/held; exec sleep 600"
    node.run("systemd-run", "-q", "--unit=held", "-p", "PrivateMounts=yes", "sh", "-c", held)
    try:
        node.wait_for(lambda: node.sh(f"ls {EXPORT}/held || true"), 30.0, "it holds its file")
        refused = cluster.standfast(old, "switchover", "--to", to, timeout_s=120, check=False)
    finally:
        node.run("systemctl", "stop", "held")
    assert f": {EXPORT}/held)" in refused and "This node serves again" in refused
    assert cluster.serving() == [old]
    assert cluster.epoch(old) == epoch


@pytest.mark.timeout(300)
def test_role_changes_are_entries_of_the_journal_and_hooks_hear_of_them(
    cluster: WithNomad,
) -> None:
    node, other = cluster[cluster.primary()], cluster.standby()
    epoch = cluster.epoch(node.name)
    began = {server.name: cluster.moment(server.name) for server in (node, other)}
    for event in ("post-demote", "post-promote"):
        node.write(f"{HOOKS}/{event}/10-tell", TELLS, 0o755)
    node.write(f"{HOOKS}/pre-promote/10-no", "#!/bin/sh\necho not yet; exit 75\n", 0o755)
    try:
        cluster.standfast(node.name, "demote", "--reason", "drill", timeout_s=120)
        refused = cluster.standfast(node.name, "promote", timeout_s=120, check=False)
        assert "hook-vetoed" in refused and "not yet" in refused
        assert cluster.epoch(node.name) == epoch
        node.sh(f"rm {HOOKS}/pre-promote/10-no")
        cluster.standfast(node.name, "promote", timeout_s=120)
        node.wait_for(lambda: "post-promote" in node.sh("cat /run/told"), 60.0, "the hook ran")
        told = node.read("/run/told").splitlines()
    finally:
        node.sh(f"rm -rf {HOOKS} /run/told")
    assert told == [f"post-demote {epoch} drill", f"post-promote {epoch + 1} drill"]

    def refused_by_the_guard() -> object:
        """On a busy machine its three seconds may be over before it knows of the other server."""
        other.run("systemctl", "start", "nfs-server", check=False)
        since = began[other.name]
        return cluster.entries(other.name, Kind.GUARD_REFUSED, "other-server-active", since)

    other.wait_for(refused_by_the_guard, 60.0, "the guard has said why")
    for where, kind, unit, reason in (
        (node, Kind.DEMOTED, AGENT, "operator"),
        (node, Kind.PROMOTION_REFUSED, AGENT, "hook-vetoed"),
        (node, Kind.LEASE_ACQUIRED, LEASE, None),
        (node, Kind.PROMOTED, AGENT, "clean-handover"),
        (other, Kind.GUARD_REFUSED, "nfs-server", "other-server-active"),
    ):
        entry, *more = cluster.entries(where.name, kind, reason, began[where.name])
        assert not more or kind is Kind.GUARD_REFUSED
        assert entry["STANDFAST_EVENT"] == kind and entry["STANDFAST_NODE"] == where.name
        said = where.sh(f"journalctl -u {unit} --since='{began[where.name]}' -o cat -q")
        assert said.count(entry["MESSAGE"]) == 1 + len(more), said
    findings = json.loads(cluster.standfast(node.name, "doctor", "--json", check=False))["findings"]
    ways = [finding for finding in findings if finding["check"] == "way"]
    assert len(ways) == len(list(cluster.lab)) - 1 and all(way["ok"] for way in ways), findings


@pytest.mark.timeout(300)
def test_a_healthy_primary_is_refused_only_for_want_of_time(
    by_default: WithNomad,
) -> None:
    by_default.wait_for_heartbeats()
    script = f"for _ in $(seq {GUARDS}); do nfs-server-guard 2>&1 && echo yes || echo no $?; done"
    said = by_default[by_default.primary()].sh(script, timeout_s=120.0)
    # A busy machine may need more than the guard's three seconds: that is its no in doubt.
    too_slow = re.findall(
        rf"refused \[(?:deadline|consul-timeout)\]|^no {128 + SIGALRM}$", said, re.M
    )
    assert len(re.findall(r"^yes$", said, re.M)) > GUARDS // 2, said
    assert len(re.findall(r"^no ", said, re.M)) == len(too_slow), said
