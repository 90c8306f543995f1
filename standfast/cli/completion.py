"""`standfast completion SHELL` prints the shipped script; tools/completion.py makes it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from standfast.errors import StandfastError

# Where the wheel puts each script, and where it lies in the project.
PLACES = {
    "bash": ("share/bash-completion/completions/standfast", "standfast.bash"),
    "zsh": ("share/zsh/site-functions/_standfast", "_standfast"),
    "fish": ("share/fish/vendor_completions.d/standfast.fish", "standfast.fish"),
}


def run(args: argparse.Namespace) -> int:
    """Prints the script; StandfastError where the installation lacks it."""
    installed, source = PLACES[args.shell]
    places = (
        Path(__file__).resolve().parents[2] / "docs/completion" / source,
        Path(sys.prefix) / installed,
        # Debian's zsh looks at directories of its own for what packages have.
        Path("/usr") / installed.replace("site-functions", "vendor-completions"),
    )
    for path in places:
        if path.is_file():
            print(path.read_text(encoding="utf-8"), end="")
            return 0
    raise StandfastError(
        f"the script is in none of {', '.join(map(str, places))}: install the wheel again"
    )
