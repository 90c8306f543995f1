"""The prompt of `standfast demo --stay`: how a line is read, and what is shown around it."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from standfast.demo.cluster import ADDRESSES
from standfast.demo.screen import NodeRow
from standfast.demo.stay import prompt as module
from standfast.demo.stay.commands import (
    COMMANDS,
    NAMES,
    ON_NODE,
    Asked,
    completions,
    help_text,
    parse,
)
from standfast.demo.stay.prompt import PROMPT, Ending, Prompt, PromptScreen
from standfast.demo.stay.session import DEEDS
from standfast.errors import Refused, UsageError
from standfast.reasons import Reason
from standfast.system.clock import monotonic

NODES = tuple(ADDRESSES)


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("  ", None),
        ("kill zippy", Asked("kill", {"NODE": "zippy"})),
        ("freeze lease", Asked("freeze", {"lease": "lease"})),
        ("freeze c1 agent", Asked("freeze", {"NODE": "c1", "lease": "agent"})),
        ("cut consul", Asked("cut", {"consul": "consul"})),
        ("cut all consul", Asked("cut", {"NODE": "all", "consul": "consul"})),
        ("heal", Asked("heal")),
        ("wait", Asked("wait")),
        ("wait 2.5", Asked("wait", {"SECONDS": "2.5"})),
        ("switchover", Asked("switchover")),
        ("switchover c2", Asked("switchover", {"NODE": "c2"})),
        ("help kill", Asked("help", {"COMMAND": "kill"})),
        ("c1 snapshots --all", Asked(ON_NODE, {"NODE": "c1"}, ("snapshots", "--all"))),
        ("c1 pause --reason 'a b'", Asked(ON_NODE, {"NODE": "c1"}, ("pause", "--reason", "a b"))),
    ],
)
def test_a_line_is_read(line: str, asked: Asked | None) -> None:
    assert parse(line, NODES) == asked


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kill", "NODE is missing: `kill NODE`; NODE is zippy, c1, c2"),
        ("kill c3", "'c3' doesn't fit: `kill NODE`; NODE is zippy, c1, c2"),
        ("kill zippy c1", "'c1' doesn't fit"),
        ("freeze c1", "lease|agent is missing: `freeze [NODE] lease|agent`"),
        ("freeze server", "'server' doesn't fit: `freeze [NODE] lease|agent`"),
        ("wait long", "'long' doesn't fit: `wait [SECONDS]`"),
        ("wait 1e9", "doesn't fit"),
        ("wait nan", "doesn't fit"),
        ("promote", "NODE is missing: `promote NODE`"),
        ("freez lease", "did you mean `freeze`?"),
        ("xyz", "no command 'xyz': see `help`"),
        ("snapshots", "`snapshots` runs on a node: `zippy snapshots`"),
        ("c1", "`c1 status`"),
        ("kill 'zippy", "close the quotes"),
        ("c1 status \0", "NUL"),
    ],
)
def test_a_wrong_line_is_refused_with_what_to_type_instead(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line, NODES)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("before", "may"),
    [
        ((), [*NAMES, *NODES]),
        (("kill",), [*NODES]),
        (("kill", "c1"), []),
        (("freeze",), [*NODES, "lease", "agent"]),
        (("freeze", "c1"), ["lease", "agent"]),
        (("freeze", "lease"), []),
        (("cut",), [*NODES, "all", "consul"]),
        (("wait",), []),
        (("no", "such"), []),
        (("kill", "c3"), []),
    ],
)
def test_what_may_follow_is_offered(before: tuple[str, ...], may: list[str]) -> None:
    assert completions(before, NODES) == may


def test_after_a_node_each_command_of_standfast_is_offered_and_no_other() -> None:
    offered = completions(("c1",), NODES)
    assert {"status", "standby", "promote"} <= set(offered)
    assert not {"agent", "lease", "kill"} & set(offered)


def test_every_command_has_its_line_of_help_and_its_deed() -> None:
    text = help_text()
    assert all(command.form in text and command.help in text for command in COMMANDS)
    assert set(DEEDS) == {*NAMES, ON_NODE} - {"quit"}
    assert help_text("kill").startswith("  kill NODE") and "\n" not in help_text("kill")


# What is shown


def screen(*, interactive: bool) -> tuple[PromptScreen, io.StringIO]:
    out = io.StringIO()
    return PromptScreen(out, monotonic(), interactive=interactive), out


def test_an_event_is_shown_above_the_prompt_and_not_in_a_line_that_is_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Typed:
        line = ""

        def get_line_buffer(self) -> str:
            return self.line

    typed = Typed()
    monkeypatch.setattr(module, "readline", typed)
    shown, out = screen(interactive=True)
    shown.show_prompt(True)
    shown.raw("one")
    assert out.getvalue().endswith(f"\r\033[Kone\n{PROMPT}")
    typed.line = "kil"
    shown.raw("two")
    shown.raw("three")
    shown.table([], "")
    assert out.getvalue().endswith(f"one\n{PROMPT}")
    typed.line = ""  # deleted again
    shown.table([], "")
    assert out.getvalue().endswith(f"\r\033[Ktwo\nthree\n{PROMPT}")
    typed.line = "kill c1"
    shown.raw("four")
    shown.show_prompt(False)  # entered
    assert out.getvalue().endswith(f"{PROMPT}four\n")


def test_a_log_has_no_escape_and_nothing_that_goes_on_all_the_time() -> None:
    shown, out = screen(interactive=False)
    shown.say("a handler ran", mark=".")
    shown.say("it broke", mark="!")
    shown.table([NodeRow("c1", "", True, None, None, True, ("agent frozen",))], "")
    assert "\033" not in out.getvalue() and "handler" not in out.getvalue()
    assert "= c1 silent (agent frozen)" in out.getvalue()


# The loop


def run(text: str, carry_out: Callable[[Asked], None]) -> tuple[Prompt, str]:
    shown, out = screen(interactive=False)
    made = Prompt(shown, NODES, carry_out, io.StringIO(text), interactive=False)
    made.run()
    return made, out.getvalue()


def test_a_script_is_carried_out_line_by_line_and_told_which_failed() -> None:
    asked: list[Asked] = []

    def carry_out(wanted: Asked) -> None:
        asked.append(wanted)
        if wanted.name == "promote":
            raise Refused(Reason.PAUSED, "not now: wait")

    made, said = run("kill zippy\n\nbogus\npromote c1\nstatus\n", carry_out)
    assert [one.name for one in asked] == ["kill", "promote", "status"]
    assert made.failed
    assert f"{PROMPT}kill zippy" in said and "no command 'bogus'" in said and "not now" in said
    made, said = run("status\nquit\nkill c1\n", lambda _: None)
    assert not made.failed and "kill" not in said


def test_ctrl_c_ends_one_command_and_an_ending_all_of_them() -> None:
    asked: list[str] = []

    def carry_out(wanted: Asked) -> None:
        asked.append(wanted.name)
        if wanted.name == "wait":
            raise KeyboardInterrupt
        if wanted.name == "failback":
            raise Ending

    _, said = run("wait\nstatus\n", carry_out)
    assert asked == ["wait", "status"] and "Ctrl-D ends the demo" in said
    with pytest.raises(Ending):
        run("failback\nhistory\n", carry_out)
    assert "history" not in asked


def test_words_are_completed_after_any_command() -> None:
    made, _ = run("", lambda _: None)
    assert made.completenames("ki", "ki", 0, 2) == ["kill "]
    assert made.completedefault("c", "kill c", 5, 6) == ["c1 ", "c2 "]
    assert made.complete_help("ki", "help ki", 5, 7) == ["kill "]
