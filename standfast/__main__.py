"""`python -m standfast` is the `standfast` command."""

from standfast.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
