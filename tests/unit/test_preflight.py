"""What is made of two nodes' facts, and what may come over the wire as facts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from msgspec.structs import replace

from standfast.doctor.storage_checks import examine
from standfast.errors import Refused
from standfast.node.space import Space
from standfast.reasons import Reason
from standfast.replication.preflight import problems, problems_between
from standfast.replication.storage_facts import Facts

MIB = 2**20
WELL = Facts(
    node="n1",
    store="btrfs",
    utc_s=1_800_000_000.25,
    free_bytes=500 * MIB,
    wants=(),
    has=("zstd",),
    kernel="6.1.0-37-amd64",
    progs="6.2",
    paths={"live": "/p/services", "snapshots": "/p", "standby": "/p/services-standby"},
    file_systems={"live": "u", "snapshots": "u", "standby": "u"},
    nested=(),
    live_received=None,
    partial_mount=None,
    copies=(),
    space=Space(size=1000 * MIB, data=500 * MIB, metadata=400 * MIB, reserve=5 * MIB),
)
PEER = replace(WELL, node="n2")


def test_a_sound_node_has_no_problem_and_doctor_says_what_is_well() -> None:
    assert problems(WELL) == []
    assert problems_between(WELL, PEER, size_bytes=400 * MIB) == []
    findings = examine(WELL)
    assert len(findings) == 9 and all(finding.ok and not finding.fix for finding in findings)
    assert findings[0].evidence == "Linux 6.1.0-37-amd64, btrfs-progs 6.2"


@pytest.mark.parametrize(
    ("change", "check", "evidence"),
    [
        ({"progs": None}, "tools", "no program `btrfs`"),
        ({"kernel": "4.9.0-19-amd64"}, "tools", "4.18 or newer is needed"),
        (
            {"file_systems": {"live": None, "snapshots": "u", "standby": "u"}},
            "disk",
            "no btrfs at /p/services on n1",
        ),
        (
            {"file_systems": {"live": "u", "snapshots": "u", "standby": "v"}},
            "disk",
            "/p/services-standby: v",
        ),
        ({"live_received": "1234"}, "received", "/p/services on n1 .* received UUID 1234"),
        ({"nested": ("p/services/db",)}, "nested", "p/services/db"),
        ({"partial_mount": "/p"}, "mounts", "/p on n1 shows a mere directory"),
        ({"copies": ("/dev/sdb", "/dev/sdc")}, "copies", "/dev/sdb and /dev/sdc on n1"),
        ({"flags": ("+i+C .", "+i f")}, "flags", "/p/services itself on n1 is immutable"),
        ({"wants": ("zstd",), "has": ()}, "options", "n1 has no zstd"),
    ],
)
def test_each_grave_problem_has_its_evidence_and_its_fix(
    change: dict[str, Any], check: str, evidence: str
) -> None:
    facts = replace(WELL, **change)
    [problem] = problems(facts)
    assert problem.check == check and problem.grave and problem.fix
    assert re.search(evidence, problem.evidence)
    bad = [finding for finding in examine(facts) if not finding.ok]
    assert [(finding.check, finding.evidence, finding.fix) for finding in bad] == [
        (problem.check, problem.evidence, problem.fix)
    ]
    assert len(check) <= 9  # the width of doctor's column


def test_a_problem_that_only_slows_down_is_not_grave_and_comes_last() -> None:
    facts = replace(WELL, wants=("compressed-data",), nested=("x",))
    assert [(problem.check, problem.grave) for problem in problems(facts)] == [
        ("nested", True),
        ("options", False),
    ]


def test_a_file_system_that_is_nearly_full_is_told_and_an_older_peer_tells_nothing() -> None:
    space = Space(size=1000 * MIB, data=500 * MIB, metadata=3 * MIB, reserve=5 * MIB)
    [problem] = problems(replace(WELL, space=space))
    assert (problem.check, problem.grave) == ("room", False)
    assert problem.evidence.startswith("n1: 3 MiB are left for metadata")
    older = {key: value for key, value in PEER.document().items() if key != "space"}
    assert problems(Facts.parse(older)) == []


@pytest.mark.parametrize(
    ("change", "check", "evidence"),
    [
        ({"flags": ("+i etc/x", "+C db")}, "flags", r"n1 .*: \+i etc/x, \+C db"),
        ({"limit_bytes": 20 * MIB}, "limit", "/p/services on n1 to 20 MiB"),
        ({"group_limits": {"1/0": 30 * MIB}}, "limit", "group 1/0 of /p/services on n1 to 30 MiB"),
    ],
)
def test_what_a_failover_loses_is_told_before_it(
    change: dict[str, Any], check: str, evidence: str
) -> None:
    [problem] = problems(replace(WELL, **change))
    assert (problem.check, problem.grave) == (check, False)
    assert re.search(evidence, problem.evidence) and problem.fix
    [told] = [finding for finding in examine(replace(WELL, **change)) if finding.check == check]
    assert told.ok and problem.evidence in told.evidence and "hook" in told.evidence


def test_plain_directories_need_nothing_of_btrfs() -> None:
    facts = replace(
        WELL, store="directory", progs=None, file_systems={}, space=Space(size=1, data=0)
    )
    assert problems(facts) == [] and examine(facts) == []


@pytest.mark.parametrize(
    ("theirs", "size_bytes", "check", "grave", "evidence"),
    [
        ({"utc_s": WELL.utc_s + 36.5}, None, "clock", True, "n2's clock is 36 s ahead of n1's"),
        ({"utc_s": WELL.utc_s - 36.5}, None, "clock", True, "n1's clock is 36 s ahead of n2's"),
        ({"utc_s": WELL.utc_s + 34.9}, None, "clock", False, "wrong time"),
        ({"utc_s": WELL.utc_s + 6.5}, None, "clock", False, "wrong time"),
        ({"free_bytes": 131 * MIB}, 100 * MIB, "space", True, "100 MiB are to be sent, n2 has 131"),
        ({"store": "directory"}, None, "store", True, "n1 stores in a btrfs, n2 in a directory"),
    ],
)
def test_what_does_not_fit_between_two_nodes(
    theirs: dict[str, Any], size_bytes: int | None, check: str, grave: bool, evidence: str
) -> None:
    problem = problems_between(WELL, replace(PEER, **theirs), size_bytes=size_bytes)[-1]
    assert (problem.check, problem.grave) == (check, grave)
    assert evidence in problem.evidence and problem.fix


@pytest.mark.parametrize(
    ("theirs", "size_bytes"),
    [({"utc_s": WELL.utc_s + 5.9}, None), ({"free_bytes": 132 * MIB}, 100 * MIB), ({}, None)],
)
def test_what_is_within_bounds_is_no_problem(
    theirs: dict[str, Any], size_bytes: int | None
) -> None:
    assert problems_between(WELL, replace(PEER, **theirs), size_bytes=size_bytes) == []


def test_what_was_asked_at_one_moment_is_compared_to_the_second() -> None:
    ahead = replace(PEER, utc_s=WELL.utc_s + 2)
    [problem] = problems_between(WELL, ahead, apart_s=0)
    assert problem.check == "clock" and not problem.grave


def test_an_option_of_the_sender_is_looked_for_on_both_sides() -> None:
    sender = replace(WELL, wants=("zstd", "compressed-data"), has=("zstd", "compressed-data"))
    reported = problems_between(sender, replace(PEER, has=()))
    assert [(problem.grave, "n2" in problem.evidence) for problem in reported] == [
        (True, True),
        (False, True),
    ]


def test_facts_survive_the_wire() -> None:
    odd = replace(WELL, live_received="1", nested=("a b",), copies=("/dev/x",), partial_mount="/m")
    odd = replace(odd, flags=("+i f",), limit_bytes=1, group_limits={"1/0": 2})
    for facts in (WELL, odd, replace(WELL, store="directory", progs=None, file_systems={})):
        assert Facts.parse(json.loads(json.dumps(facts.document(), sort_keys=True))) == facts


@pytest.mark.parametrize(
    "change",
    [
        {"node": None},
        {"node": "n\x1b[2J"},
        {"utc_s": "now"},
        {"utc_s": True},
        {"free_bytes": -1},
        {"free_bytes": 1.5},
        {"has": "zstd"},
        {"nested": [1]},
        {"nested": ["x"] * 1000},
        {"paths": {"live": "/p"}},
        {"paths": []},
        {"group_limits": {"1/0; reboot": 1}},
        {"group_limits": {"1/0\n": 1}},
        {"group_limits": {"1/0": -1}},
        {"file_systems": {"live": 1, "snapshots": None, "standby": None}},
        {"file_systems": {"live": "u"}},
        {"file_systems": {"another": "u"}},
        {"paths": {"live": "/p\x1b", "snapshots": "/", "standby": "/s"}},
        {"kernel": "6" * 5000},
    ],
)
def test_facts_that_are_none_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refusal:
        Facts.parse({**WELL.document(), **change})
    assert refusal.value.reason is Reason.PROTOCOL


def test_facts_of_a_newer_version_may_say_more_but_not_less() -> None:
    assert Facts.parse({**WELL.document(), "more": 1}) == WELL
    with pytest.raises(Refused, match="kernel"):
        Facts.parse({name: value for name, value in WELL.document().items() if name != "kernel"})


@pytest.mark.parametrize("whose", ["n1", "n2"])
def test_a_clock_that_was_set_is_told_of_either_side(whose: str) -> None:
    ours, theirs = (
        replace(facts, clock_set_s=7200.0 if facts.node == whose else 86_401.0)
        for facts in (WELL, PEER)
    )
    [problem] = problems_between(ours, theirs)
    assert (problem.check, problem.grave) == ("clock", False)
    assert problem.evidence.startswith(f"{whose}'s clock was set 2.0 h ago")


def test_a_node_of_an_older_version_tells_nothing_of_its_clock() -> None:
    document = WELL.document()
    assert Facts.parse(document) == WELL
    del document["clock_set_s"]
    assert Facts.parse(document).clock_set_s is None
