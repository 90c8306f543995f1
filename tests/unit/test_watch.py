"""When watches have to begin anew."""

from __future__ import annotations

import pytest

from standfast.watch import Leadership


@pytest.mark.parametrize(
    ("seen", "anew"),
    [
        (["a", "a", "a"], [False, False]),
        (["a", "b", "b"], [True, False]),
        (["a", "", "a"], [False, False]),
        (["a", None, None, "a", "a"], [False, False, True, False]),
        (["a", None, "b"], [False, True]),
        ([None, "a"], [True]),
        (["", None, ""], [False, False]),
    ],
)
def test_watches_begin_anew_with_another_leader_and_when_consul_is_back(
    seen: list[str | None], anew: list[bool]
) -> None:
    answers = iter(seen)
    leadership = Leadership(lambda: next(answers))
    assert [leadership.changed() for _ in anew] == anew
