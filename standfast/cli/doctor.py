"""`standfast doctor`: every check of this node, each with its cause and what to do."""

from __future__ import annotations

import argparse

from standfast.cli.targets import Answer, tell_of_each
from standfast.config.model import Config
from standfast.doctor.run import LIMIT_S, document, gather, looks_of, render
from standfast.system.clock import Deadline
from standfast.text import clean_lines


def run(args: argparse.Namespace) -> int:
    """Runs `standfast doctor`: exit 0 when every check is well, else 1."""
    return tell_of_each(args, _answer)


def _answer(config: Config) -> Answer:
    findings = gather(looks_of(config), Deadline.after(LIMIT_S))
    return Answer(
        document(config, findings),
        lambda: print(clean_lines(render(findings))),
        code=0 if all(finding.ok for finding in findings) else 1,
    )
