"""A Consul that somebody else set up, and works on: its names, its maintenance, what lies in it.

On a real one, as it is about what Consul does by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.agent.watcher import Watcher
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.consul.values import Registration
from standfast.guard import active_elsewhere
from standfast.reasons import Reason
from standfast.role.decide import decide
from standfast.role.decision import Action, Moment, Request
from standfast.role.observation import Cluster, Local
from standfast.system.clock import monotonic, utc_now
from tests.contract.consul_scene import SYNCED, listed
from tests.support.configs import config_in
from tests.support.consul_clusters import NODE, ConsulCluster, real_cluster

pytestmark = SYNCED


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulCluster]:
    with real_cluster(tmp_path_factory.mktemp("consul")) as cluster:
        yield cluster


@pytest.mark.parametrize("node", ["N1", "n1.lan", NODE])
def test_a_node_that_consul_calls_otherwise_is_not_promoted(
    cluster: ConsulCluster, tmp_path: Path, node: str
) -> None:
    """Its own server would be another's to its guard, which is shown here, too."""
    consul, config = cluster.gateway(), config_in(tmp_path, node, "n2")
    consul.put(config.key("epoch"), dump_epoch(4))
    gone = Leader(4, Holder("n2", "boot-2"), 9, LeaderState.CLEAN, (node,), to=node)
    consul.put(config.key("leader"), gone.dump())
    view = Watcher(config, consul).look(0)
    assert isinstance(view, Cluster)
    local = Local(node, "boot-1", 4, has_live=True)
    decision = decide(view, local, config, Moment(monotonic(), utc_now()), Request(promote=True))
    assert decision.action is Action.BLOCKED
    assert (decision.reason is Reason.NODE_MISNAMED) == (node != NODE)
    consul.register(
        Registration(config.service_id, config.service, "10.1.2.3", 2049, {"epoch": "4"}, 60, "nfs")
    )
    consul.pass_check(f"service:{config.service_id}", "")
    listed(consul, config.service, "passing")
    other = active_elsewhere(consul.instances(config.service), node, 4, lambda *_: True)
    assert (other is not None) == (node != NODE)
