from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from standfast.config.client import Client
from standfast.config.consul import ConsulAccess
from standfast.config.model import (
    FAST_PROFILE,
    Config,
    Fencing,
    LeaseTiming,
    Nfs,
    Node,
    Paths,
    Replication,
)
from standfast.config.rules import check, check_together, least_wait_s
from tests.support.configs import config_of


def config(**changes: Any) -> Config:
    return config_of("zippy", "c1", **changes)


def said(broken: Config) -> list[str]:
    return [str(problem) for problem in check(broken)]


def test_the_defaults_and_the_fast_profile_obey_every_rule() -> None:
    assert said(config()) == []
    assert said(config(lease=FAST_PROFILE)) == []
    assert (FAST_PROFILE.length, FAST_PROFILE.fence, FAST_PROFILE.wait) == (2.0, 1.0, 4.1)


@pytest.mark.parametrize(("options", "rule"), [
    ("vers=4.2,soft", "soft gives programs errors"),
    ("softerr,vers=4.1", "softerr gives programs errors"),
    ("vers=4.0,hard", "must name the version"),
    ("vers=3,hard", "must name the version"),
    ("hard", "must name the version"),
])  # fmt: skip
def test_mount_options_that_would_tell_programs_of_a_failover_are_refused(
    options: str, rule: str
) -> None:
    [problem] = said(config(client=Client(options=options)))
    assert problem.startswith("client.options") and rule in problem
    assert said(config(client=Client(options="nfsvers=4.1,hard"))) == []


def test_a_short_wait_is_refused_with_the_least_that_would_do() -> None:
    assert said(config(lease=LeaseTiming(wait=11.0))) == [
        "lease.wait = 11: breaks wait*(1-drift) >= (length+fence)*(1+drift) + 1 s: "
        "10.890 < 11.100 with length 8, fence 2, drift 0.01; "
        "set lease.wait to at least 11.22, or shorten length or fence"
    ]


@pytest.mark.parametrize("length", [2.0, 7.3, 8.0, 60.0])
@pytest.mark.parametrize("drift", [0.0, 0.01, 0.2])
def test_the_least_wait_is_accepted_and_a_little_less_is_not(length: float, drift: float) -> None:
    timing = LeaseTiming(heartbeat=0.5, request_timeout=0.5, length=length, drift=drift)
    least = least_wait_s(timing)
    assert said(config(lease=replace(timing, wait=least))) == []
    assert len(said(config(lease=replace(timing, wait=least - 0.02)))) == 1


def test_a_lease_that_one_lost_heartbeat_ends_is_refused() -> None:
    assert said(config(lease=LeaseTiming(length=7.9))) == [
        "lease.length = 7.9: breaks length >= 2*(heartbeat+request_timeout): 7.9 < 8 with "
        "heartbeat 2, request_timeout 2; set lease.length to at least 8, or shorten heartbeat "
        "or request_timeout"
    ]


def test_cycles_too_rare_for_the_data_loss_allowed_are_refused() -> None:
    assert said(config(replication=Replication(interval=301.0))) == [
        "replication.interval = 301: must be at most half of max_data_loss (600 s), or one late "
        "cycle blocks every failover; set it to at most 300, or raise max_data_loss"
    ]


def test_there_has_to_be_a_node() -> None:
    assert said(config(nodes={})) == [
        'nodes: no storage node is given; add one: [nodes.NAME] with address = "192.168.1.2"'
    ]
    assert said(config(nodes={"zippy": Node(address="192.168.1.2")})) == []


@pytest.mark.parametrize("key", ["node", "preferred"])
def test_named_nodes_are_among_the_nodes(key: str) -> None:
    assert said(config(**{key: "c9"})) == [
        f'{key} = "c9": is not one of the nodes (c1, zippy); use one of them or add [nodes.c9]'
    ]


@pytest.mark.parametrize("name", ["c1.lan", "C1", "C1.rack.example.org"])
def test_a_name_that_is_nearly_that_of_a_node_is_told_with_it(name: str) -> None:
    [told] = said(config(node=name))
    added = f'[nodes."{name}"]' if "." in name else f"[nodes.{name}]"
    assert told.endswith(f"did you mean c1? If not, add {added}")
    [told] = said(config(node=name.replace("1", "2")))
    assert "use one of them" in told


@pytest.mark.parametrize(
    ("one", "other"),
    [("192.168.1.2", "192.168.1.2"), ("fd00::1", "fd00:0::1"), ("c1.net", "C1.net.")],
)
def test_two_nodes_have_two_addresses(one: str, other: str) -> None:
    nodes = {"zippy": Node(address=one), "c1": Node(address=other)}
    assert said(config(nodes=nodes)) == [
        f'nodes.zippy.address = "{one}": is also the address of node c1; give each node its own'
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"standby": "/persist/services"}, ("paths.standby", "is the same as paths.live")),
        ({"standby": "/persist/services/s"}, ("paths.standby", "lies inside paths.live")),
        ({"live": "/persist/services-standby/x"}, ("paths.standby", "contains paths.live")),
        ({"bind": "/persist/services/b"}, ("paths.bind", "lies inside paths.live")),
        ({"bind": "/persist"}, ("paths.bind", "contains paths.live")),
        ({"state": "/data/services/state"}, ("paths.state", "lies inside paths.bind")),
        ({"run": "/var/lib/standfast"}, ("paths.run", "is the same as paths.state")),
        ({"snapshots": "/persist/services"}, ("paths.snapshots", "is the same as paths.live")),
        ({"snapshots": "/persist/services/x"}, ("paths.snapshots", "lies inside paths.live")),
        ({"snapshots": "/persist/services-standby"}, ("paths.snapshots", "is the same as")),
        ({"live": "/"}, ("paths.live", "its last part names the snapshots")),
        ({"live": "/persist/my services"}, ("paths.live", "its last part names the snapshots")),
        ({"run": "/run/" + "x" * 100}, ("paths.run", "the kernel takes 107")),
    ],
)
def test_directories_that_lie_in_each_other_are_refused(
    changes: dict[str, str], words: tuple[str, str]
) -> None:
    paths = Paths(**{name: Path(text) for name, text in changes.items()})
    key, rule = words
    assert any(line.startswith(f"{key} = ") and rule in line for line in said(config(paths=paths)))


def test_the_snapshots_may_lie_around_the_live_subvolume() -> None:
    paths = Paths(live=Path("/persist/services"), snapshots=Path("/persist"))
    assert said(config(paths=paths)) == []
    assert said(config(paths=replace(paths, snapshots=Path("/")))) == []


def test_a_neighbour_with_a_longer_name_is_not_inside() -> None:
    paths = Paths(live=Path("/persist/services"), standby=Path("/persist/services2"))
    assert said(config(paths=paths)) == []


def test_half_a_client_certificate_is_refused() -> None:
    certificate = Path("/etc/consul/cert.pem")
    (line,) = said(config(consul=ConsulAccess(client_cert=certificate)))
    assert "is of no use without consul.client_key" in line
    (line,) = said(config(consul=ConsulAccess(client_key=certificate)))
    assert "is of no use without consul.client_cert" in line
    both = ConsulAccess(client_cert=certificate, client_key=certificate)
    assert said(config(consul=both)) == []


def test_a_volume_for_nobody_is_refused() -> None:
    (line,) = said(config(nfs=Nfs(clients=())))
    assert line.startswith("nfs.clients = []: nobody could mount the volume")


def other_volume(**changes: Any) -> Config:
    paths = Paths(
        live=Path("/persist/media"),
        standby=Path("/persist/media-standby"),
        bind=Path("/data/media"),
    )
    return replace(config(), volume="media", source=Path("/m.toml"), paths=paths, **changes)


def conflicts(second: Config, **changes: Any) -> list[str]:
    reported = check_together([config(**changes), second])
    assert all(where is second for where, _ in reported)
    return [str(problem) for _, problem in reported]


def test_two_volumes_side_by_side_share_the_directories_that_may_be_shared() -> None:
    assert conflicts(other_volume()) == []


def test_the_volumes_of_a_node_share_the_port_of_its_server_and_its_fence() -> None:
    """Each process would replace the other volume's rules, and nothing shut what they shut."""
    (line,) = conflicts(other_volume(nfs=Nfs(clients=("c1",), port=20490)))
    assert line == (
        "nfs.port = 20490: is 2049 for volume data-services, and a node has one NFS server and "
        "one fence for all its volumes; give each volume the same"
    )
    nft, ipset = Fencing(backend="nftables"), Fencing(backend="ipset")
    (line,) = conflicts(other_volume(fence=ipset), fence=nft)
    assert line.startswith('fence.backend = "ipset": is "nftables" for volume data-services')
    assert conflicts(other_volume(fence=nft)) == [], "`auto` may be the same"


@pytest.mark.parametrize(
    ("name", "path", "rule"),
    [
        ("live", "/persist/services/media", "overlaps with paths.live (/persist/services)"),
        ("standby", "/persist/services-standby", "overlaps with paths.standby"),
        ("bind", "/data", "overlaps with paths.bind (/data/services)"),
        ("live", "/data/services/x", "overlaps with paths.bind (/data/services)"),
        ("snapshots", "/persist/services/x", "overlaps with paths.live (/persist/services)"),
        ("live", "/elsewhere/services", "overlaps with paths.snapshots (/persist)"),
    ],
)
def test_two_volumes_that_are_in_the_way_of_each_other_are_refused(
    name: str, path: str, rule: str
) -> None:
    second = other_volume()
    paths: Paths = replace(second.paths, **{name: Path(path)})
    assert any(rule in line for line in conflicts(replace(second, paths=paths)))


def test_two_volumes_with_one_service_are_refused() -> None:
    (line,) = conflicts(other_volume(consul=ConsulAccess(service="data-services")))
    assert line.startswith('consul.service = "data-services": is also the service of volume')
