"""The prompt of `standfast demo --stay`: lines are read, and what happens meanwhile is shown.

Invariant: an event never lands in a line that is being typed: it is shown above an empty prompt, or
held back until there is one. Ctrl-C ends what a command waits for, never the demo.
"""

from __future__ import annotations

import cmd
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from standfast.demo.screen import NodeRow, Screen
from standfast.demo.stay.commands import Asked, completions, parse
from standfast.errors import StandfastError
from standfast.system.lines import fields_of

try:
    import readline
except ImportError:  # a Python without it: no completion, and no prompt is drawn anew
    readline = None  # type: ignore[assignment]

PROMPT = "demo> "
_CLEAR_LINE = "\r\033[K"


class Ending(KeyboardInterrupt):
    """Not Ctrl-C at the prompt: all of it is to end."""


class PromptScreen(Screen):
    """Events above a prompt, or one after the other where there is no terminal."""

    def __init__(self, out: TextIO, started: float, *, interactive: bool) -> None:
        super().__init__(out, started, live=False)
        self._colored = interactive
        self._prompt_shown = False
        self._held: list[str] = []

    def say(self, text: str, *, mark: str = " ") -> None:
        """Not what goes on all the time."""
        if mark != ".":
            super().say(text, mark=mark)

    def table(self, rows: Sequence[NodeRow], client: str) -> None:
        """As Screen; called again and again, so it also shows what was held back."""
        super().table(rows, client)
        with self._lock:
            if self._held and not self._is_typing():
                self._put_held()

    def show_prompt(self, shown: bool) -> None:
        """Whether the prompt is the last thing on the terminal now."""
        with self._lock:
            self._prompt_shown = shown
            if self._held and not shown:
                self._put_held()

    def _put(self, text: str) -> None:
        self._held.append(text)
        if not self._is_typing():
            self._put_held()

    def _put_held(self) -> None:
        text, self._held = "\n".join(self._held), []
        super()._put(text)

    def _is_typing(self) -> bool:
        return self._prompt_shown and readline is not None and readline.get_line_buffer() != ""

    def _erase(self) -> None:
        if self._prompt_shown:
            self._out.write(_CLEAR_LINE)

    def _draw(self) -> None:
        if self._prompt_shown:
            self._out.write(PROMPT)
        self._out.flush()


class Prompt(cmd.Cmd):
    """Reads lines until the end of the input, or `quit`."""

    def __init__(
        self,
        screen: PromptScreen,
        nodes: Sequence[str],
        carry_out: Callable[[Asked], None],
        source: TextIO,
        *,
        interactive: bool,
    ) -> None:
        super().__init__(stdin=source)
        self.use_rawinput = interactive
        self.prompt = PROMPT if interactive else ""
        self.failed = False
        """Whether a command did."""
        self._screen = screen
        self._nodes = nodes
        self._carry_out = carry_out
        self._interactive = interactive

    def run(self) -> None:
        """Ending, as it comes."""
        if self._interactive and readline is not None:
            readline.set_completer_delims(" ")
            readline.set_pre_input_hook(lambda: self._screen.show_prompt(True))
        try:
            while not self._ended():
                pass
        finally:
            if readline is not None:
                readline.set_pre_input_hook(None)
            with contextlib.suppress(OSError):  # a terminal that was closed
                self._screen.show_prompt(False)

    def _ended(self) -> bool:
        try:
            self.cmdloop()
        except Ending:
            raise
        except KeyboardInterrupt:
            self._screen.show_prompt(False)
            self._screen.raw("\n(Ctrl-C ends a command, not what it began; Ctrl-D ends the demo)")
            return False
        return True

    def precmd(self, line: str) -> str:
        """The line was read."""
        if line == "EOF" and self._interactive:
            line = "quit"
            self._screen.raw("")
        self._screen.show_prompt(False)
        if not self._interactive and line != "EOF":
            self._screen.raw(f"\n{PROMPT}{line}")
        return line

    def onecmd(self, line: str) -> bool:
        """Whether it was the last one."""
        if line == "EOF":
            return True
        try:
            asked = parse(line, self._nodes)
            if asked is None or asked.name == "quit":
                return asked is not None
            self._carry_out(asked)
        except StandfastError as error:
            self.failed = True
            self._screen.say(str(error), mark="!")
        return False

    def completenames(self, text: str, *_: Any) -> list[str]:
        return self._completed(text, "")

    def completedefault(self, *told: Any) -> list[str]:
        text, line, begin, _ = told
        return self._completed(text, line[:begin])

    complete_help = completedefault

    def _completed(self, text: str, before: str) -> list[str]:
        may = completions(fields_of(before), self._nodes)
        return [f"{word} " for word in may if word.startswith(text)]
