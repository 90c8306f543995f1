"""`standfast doctor`: every check of this node, each with its cause and what to do."""

from __future__ import annotations

import argparse
import sys

from standfast.cli.output import print_json
from standfast.config.load import load_volume
from standfast.doctor.run import LIMIT_S, document, gather, looks_of, render
from standfast.system.clock import Deadline
from standfast.text import clean_lines


def run(args: argparse.Namespace) -> int:
    """Runs `standfast doctor`: exit 0 when every check is well, else 1."""
    config = load_volume(args.volume, require_storage=False)
    findings = gather(looks_of(config), Deadline.after(LIMIT_S))
    if args.json:
        print_json(document(config, findings))
    else:
        sys.stdout.write(clean_lines(render(findings)) + "\n")
    return 0 if all(finding.ok for finding in findings) else 1
