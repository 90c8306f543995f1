"""`python -m standfast.demo.program PROGRAM ARGUMENT...` runs a program on the demo's parts.

PROGRAM is `standfast`, or the path of a deployed handler, which is run as it is.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from standfast.assembly.parts import use
from standfast.cli.main import main as standfast
from standfast.demo.commands import STANDFAST
from standfast.demo.parts import DemoParts


def main(argv: Sequence[str]) -> int:
    """The program's exit status."""
    use(DemoParts())
    program, *arguments = argv
    if program == STANDFAST:
        return standfast(arguments)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
