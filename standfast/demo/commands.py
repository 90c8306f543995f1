"""How a program is started on the demo's parts: see `demo.program`."""

from __future__ import annotations

import sys
from pathlib import Path

from standfast.errors import StandfastError

STANDFAST = "standfast"


def command(program: str, *arguments: str) -> list[str]:
    """The command line that runs `program` with this interpreter."""
    return run_module("standfast.demo.program", program, *arguments)


def run_module(name: str, *arguments: str) -> list[str]:
    """The same for a module. It loads nothing of the directory that it is run in, and nothing of
    the environment where this process doesn't."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", name, *arguments]


def handler(name: str, here: Path = Path(__file__)) -> str:
    """The path of a deployed handler: installed with this module (`here`), or in a checkout.

    StandfastError when it is in neither place.
    """
    module = here.resolve()
    # Not beside the interpreter: on NixOS that has a prefix of its own, with wrappers in it.
    prefixes = [path.parents[2] for path in module.parents if path.name == "site-packages"]
    places = [prefix / "bin" for prefix in prefixes]
    places += [module.parents[2] / "handlers", Path(sys.executable).parent]
    for place in places:
        if (place / name).is_file():
            return str(place / name)
    raise StandfastError(
        f"the handler {name} is in none of {', '.join(map(str, places))}: install Standfast"
    )
