"""One random schedule again, with its timeline: python -m tests.sim.replay SEED [--short]"""

from __future__ import annotations

import argparse
import logging
import sys

from tests.sim.deeds import schedule_of
from tests.sim.search import report, run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="One random schedule, with its timeline.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--short", action="store_true", help="leave out deeds that don't matter")
    parser.add_argument("--details", action="store_true", help="every step of every plan")
    parser.add_argument("--log", action="store_true", help="what the program says")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if args.log else logging.CRITICAL)
    schedule = schedule_of(args.seed)
    print(schedule)
    world, violation = run(schedule)
    print(world.story(10_000, details=args.details))
    if violation is None:
        print("no violation")
        return 0
    print(f"VIOLATION: {str(violation).splitlines()[0]}")
    if args.short:
        print(report(schedule, violation).text)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
