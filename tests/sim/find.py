"""After how many random schedules the search finds a rule that was taken away.

python -m tests.sim.find flush-not-noticed --seed 1 --most 2000
python -m tests.sim.find clean-found-taken-at-once --only restore    a third of the deeds is that
"""

from __future__ import annotations

import argparse
import sys

from tests.sim.deeds import DEEDS
from tests.sim.mutations import MUTATIONS
from tests.sim.search import search


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Search with one safety rule taken away.")
    parser.add_argument("rule", choices=sorted(MUTATIONS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, default=2000)
    parser.add_argument("--only", choices=sorted(DEEDS), default="", help="a deed to have often")
    args = parser.parse_args(arguments)
    with MUTATIONS[args.rule]():
        done, violation = search(range(args.seed, args.seed + args.most), only=args.only)
    if violation is None:
        print(f"{args.rule}: not found by {done} schedules from seed {args.seed}")
        return 1
    print(f"{args.rule}: found by schedule {done} from seed {args.seed}\n{violation.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
