"""Which snapshot an increment builds on, and when everything may be sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication import wire
from standfast.replication.parents import choose, newest_common


def snapshot(second: int, content_id: str, *, received: bool = False) -> Snapshot:
    name = SnapshotName.at("services", 1e9 + second)
    return Snapshot(name, Path("/p") / str(name), content_id, received)


OURS = [
    snapshot(1, "x"),
    snapshot(2, "y", received=True),
    snapshot(3, "only-ours"),
    snapshot(4, "sent"),
    snapshot(5, "later"),
]
THEIRS = tuple(
    wire.Offer(f"services@2001090{number}T014640Z", content_id, received=False)
    for number, content_id in enumerate(["later", "x", "y", "only-theirs", "sent"])
)


def test_the_parent_is_the_newest_common_content_before_the_snapshot() -> None:
    parent = newest_common(OURS, THEIRS, OURS[3])
    assert parent is not None and parent.content_id == "y"


def test_without_common_content_there_is_no_parent_whatever_the_names_say() -> None:
    same_name = wire.Offer(str(OURS[0].name), "another", received=True)
    assert newest_common(OURS, (THEIRS[3], same_name), OURS[3]) is None


@pytest.mark.parametrize(
    ("theirs", "may_be_full", "served_before", "outcome"),
    [
        ((), False, False, "full"),  # a new standby
        ((), False, True, "needs-full"),  # it lost what it had
        ((), True, True, "full"),
        (THEIRS[3:4], False, False, "needs-full"),
        (THEIRS[3:4], False, True, "needs-full"),
        (THEIRS[3:4], True, False, "full"),
    ],
)
def test_everything_is_sent_only_to_a_new_standby_or_when_told(
    theirs: tuple[wire.Offer, ...], may_be_full: bool, served_before: bool, outcome: str
) -> None:
    def chosen() -> Snapshot | None:
        return choose("c2", None, theirs, may_be_full=may_be_full, served_before=served_before)

    if outcome == "full":
        assert chosen() is None
        return
    with pytest.raises(Refused, match="standfast replicate c2 --full") as refused:
        chosen()
    assert refused.value.reason is Reason.NEEDS_FULL


def test_a_parent_is_taken_even_where_everything_may_be_sent() -> None:
    assert choose("c2", OURS[0], THEIRS, may_be_full=True, served_before=True) == OURS[0]
