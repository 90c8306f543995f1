"""Every finding that doctor explains is caused for real in some test, or it is said why not."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import pytest

from standfast.doctor.causes import CAUSES
from tests.support.checkout import CHECKOUT
from tests.support.doctor_scenes import SCENES, SEEN

LAB = "tests/labs/containers/test_doctor.py"
CLIENTS = "tests/labs/kernels/test_clients.py"
DAEMONS = "tests/labs/kernels/test_daemons.py"
ON_BTRFS = "tests/contract/test_preflight_on_btrfs.py"
FOREIGN_CONSUL = "tests/contract/test_foreign_consul.py"
NAMES_WHAT_IS_LEFT = "test_doctor_names_what_a_client_without_its_handler_is_left_with"
AFTER_A_POWER_CUT = "test_after_a_power_cut_every_program_that_opens_by_path_writes_again"
REFUSED_BEFORE = "test_what_the_next_server_would_fail_at_refuses_a_switchover_before_it"
A_COPY = "test_a_copy_of_the_disk_is_found_and_the_fix_makes_it_another_file_system"

ELSEWHERE: Mapping[tuple[str, str], tuple[str, str]] = {
    ("service", "diverged"): (
        LAB,
        "test_what_only_a_replaced_primary_has_is_named_until_it_is_deleted",
    ),
    ("nomad", "leaders"): (LAB, "test_a_primary_where_consul_is_led_as_well_is_told_apart"),
    ("storage", "copies"): (ON_BTRFS, A_COPY),
    # A standby judges its own disk by the same facts, which the primary is sent.
    ("replication", "copies"): (ON_BTRFS, A_COPY),
    ("takeover", "exports"): (DAEMONS, REFUSED_BEFORE),
    ("takeover", "nfs-conf"): (DAEMONS, REFUSED_BEFORE),
    ("takeover", "name"): (
        FOREIGN_CONSUL,
        "test_a_node_that_consul_calls_otherwise_is_not_promoted",
    ),
    ("clients", "mount"): (CLIENTS, NAMES_WHAT_IS_LEFT),
    ("clients", "binds"): (CLIENTS, NAMES_WHAT_IS_LEFT),
    ("clients", "server"): (CLIENTS, "test_doctor_says_why_a_client_can_not_mount"),
    ("clients", "containers"): (CLIENTS, AFTER_A_POWER_CUT),
    ("clients", "handles"): (CLIENTS, AFTER_A_POWER_CUT),
    ("clients", "hanging"): (
        CLIENTS,
        "test_open_files_survive_a_reboot_of_the_server_without_failover",
    ),
}
"""File and test; all have real parts."""
NOT_SEEN: Mapping[tuple[str, str], str] = {
    ("replication", "store"): "one side would run the demo's parts, which no unit starts",
    ("replication", "clock"): "containers share the host's clock",
    ("node", "clock"): "seen where nothing synchronises the host's clock, and only there",
    ("node", "clock-set"): "containers share the host's clock",
    ("node", "token"): "no node of the lab asks another's Consul with a token",
    ("clients", "options"): "needs a soft NFS mount: in the kernel lab all mounts are as advised",
    ("nomad", "quarantine"): "a node has to be in quarantine for ten minutes",
    ("nomad", "heartbeat"): "told by an agent that is a server, and the stand-in's nodes are none",
}
"""Why not."""


def named_tests(path: str) -> set[str]:
    tree = ast.parse((CHECKOUT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_finding_is_caused_somewhere_or_it_is_said_why_not() -> None:
    known = [*SEEN, *ELSEWHERE, *NOT_SEEN]
    assert set(CAUSES) - set(known) == set(), "nobody has ever seen them"
    assert set(known) - set(CAUSES) == set(), "doctor has no such finding"
    assert len(known) == len(set(known)), "once is enough"
    assert all(reason for reason in NOT_SEEN.values())


@pytest.mark.parametrize(("path", "name"), sorted(set(ELSEWHERE.values())))
def test_a_test_that_sees_a_finding_is_there(path: str, name: str) -> None:
    assert name.startswith("test_") and name in named_tests(path)
    assert path.startswith(("tests/contract/", "tests/labs/")), "a test without real parts"


def test_the_lab_plants_every_scene_and_looks_for_each_of_its_findings() -> None:
    text = (CHECKOUT / LAB).read_text()
    assert re.search(r'@pytest\.mark\.parametrize\("what", SCENES\)', text)
    for what, scene in SCENES.items():
        assert scene.do and scene.sights, what
        assert all(sight.words for sight in scene.sights), what
