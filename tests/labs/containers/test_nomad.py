"""The storage never waits for Nomad: with one that fails in every way it moves all the same, and
the jobs follow once it is well again."""

from __future__ import annotations

import json
import time

import pytest

from tests.fakes.nomad_api import Manner
from tests.labs.containers.cluster import AGENT, VOLUME
from tests.labs.containers.drills import Writers, power_cut
from tests.labs.containers.nomad import ADDRESS, PORT, SERVER, WithNomad

# In Nomad's place on a node: what the servers said of it when it was started.
STARTED = f"""[Unit]
Description=Nomad's client, as far as it starts
[Service]
Type=exec
ExecStart=/usr/bin/python3 -c 'import time, urllib.request as r; \
  print(r.urlopen("{SERVER}/v1/nodes", timeout=60).read().decode(), flush=True); time.sleep(1e6)'
StandardOutput=truncate:/run/nomad-started
[Install]
WantedBy=multi-user.target
"""
BEFORE_NOMAD = f"standfast-nomad@{VOLUME}"
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("manner", [Manner.ERROR, Manner.HANG, Manner.DENY], ids=lambda m: m.value)
def test_a_switchover_waits_for_no_nomad_and_the_jobs_follow_later(
    cluster: WithNomad, manner: Manner
) -> None:
    nomad, source, target = cluster.nomad, cluster.primary(), cluster.standby().name
    cluster.wait_until_followed(source)
    with Writers(cluster.lab, f"nomad-{manner.value}") as writers:
        writers.wait_for_ack(source)
        nomad.be(manner)
        cluster.standfast(source, "switchover", "--to", target, timeout_s=120)
        writers.wait_for_ack(target, after_s=time.monotonic())
        assert str(cluster.status(target)["nomad"]["reason"]).startswith("nomad-")
        nomad.be(Manner.NORMAL)
    assert writers.served() == [source, target]
    cluster.wait_until_followed(target)
    cluster.wait_until_plain(source)
    assert "nomad:" in cluster.standfast(target, "status")


def test_a_failover_waits_for_no_nomad_that_hangs(cluster: WithNomad) -> None:
    nomad = cluster.nomad
    cluster.wait_until_followed(cluster.primary())
    nomad.be(Manner.HANG)
    takeover = power_cut(cluster, "nomad-hangs")
    nomad.be(Manner.NORMAL)
    takeover.check(cluster)
    old, new = takeover.old, takeover.new
    cluster.wait_until_followed(new)
    assert nomad.node(old)["SchedulingEligibility"] == "ineligible"
    cluster.lab.boot([cluster[old]])
    nomad.start(old)
    cluster.wait_until_plain(old)
    assert nomad.where("db") == [new]


def test_a_former_primary_takes_no_jobs_before_its_nomad_starts(cluster: WithNomad) -> None:
    """Nobody has taken over and made it ineligible, so that is left to the unit of its boot."""
    nomad, old = cluster.nomad, cluster.primary()
    node = cluster[old]
    others = [container for container in cluster.lab if container.name != old]
    cluster.wait_until_followed(old)
    try:
        for other in others:
            other.run("systemctl", "stop", AGENT)
        others[0].sh(f"consul services register -name=nomad -address={ADDRESS} -port={PORT}")
        node.write("/etc/systemd/system/nomad.service", STARTED)
        node.sh(f"systemctl daemon-reload; systemctl enable nomad {BEFORE_NOMAD}; sync")
        cluster.power_cut(old)
        cluster.lab.wait_for(lambda: nomad.node(old)["Status"] == "down", 60.0, "the servers know")
        assert nomad.node(old)["SchedulingEligibility"] == "eligible"
        assert nomad.node(old)["Meta"]["storage_role"] == "primary"
        cluster.lab.boot([node])
        node.wait_for(lambda: node.is_active("nomad"), 60.0, "its Nomad has started")
        seen = json.loads(node.wait_for(lambda: node.read("/run/nomad-started"), 60.0, "it looks"))
        (itself,) = [entry for entry in seen if entry["Name"] == old]
        assert itself["SchedulingEligibility"] == "ineligible"
        nomad.start(old)
    finally:
        for other in others:
            other.run("systemctl", "start", AGENT)
        if not node.pid:
            node.boot()
        node.sh(
            f"systemctl disable --now nomad {BEFORE_NOMAD}; rm /etc/systemd/system/nomad.service"
        )
        others[0].sh("consul services deregister -id=nomad", check=False)
    cluster.lab.wait_for(lambda: cluster.serving() != [], 60.0, "somebody serves")
    cluster.wait_until_followed(cluster.primary())
