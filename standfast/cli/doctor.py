"""`standfast doctor`: every check of this node, each with its cause and what to do."""

from __future__ import annotations

import argparse

from standfast.cli.targets import Answer, forbidden, tell_of_each
from standfast.config.model import Config
from standfast.doctor.run import LIMIT_S, document, gather, looks_of, render
from standfast.errors import AS_ROOT, Unreachable
from standfast.system.clock import Deadline
from standfast.text import clean_lines


def run(args: argparse.Namespace) -> int:
    """Runs `standfast doctor`: exit 0 when every check is well, else 1."""
    return tell_of_each(args, _answer)


def _answer(config: Config) -> Answer:
    path = forbidden([config.run_dir / "agent.sock", config.state_dir])
    if path is not None:
        raise Unreachable(f"{path} is closed to this user, and most checks would fail. {AS_ROOT}")
    findings = gather(looks_of(config), Deadline.after(LIMIT_S))
    return Answer(
        document(config, findings),
        lambda: print(clean_lines(render(findings))),
        code=0 if all(finding.ok for finding in findings) else 1,
    )
