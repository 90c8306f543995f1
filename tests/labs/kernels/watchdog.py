"""Ends a lab whose test run has died: `python -m tests.labs.kernels.watchdog TAG`, with a pipe.

Invariant: the lab is undone when the other end of standard input closes without a word, however
its holder ended; a word means that it undid the lab itself.
"""

from __future__ import annotations

import sys

from tests.labs.shared.host import LABS, destroy


def main() -> None:
    tag = sys.argv[1]
    if sys.stdin.read():
        return
    destroy(tag)
    (LABS / f"{tag}.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
