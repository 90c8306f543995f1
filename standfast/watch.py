"""`standfast-watch@V.service`: the `consul watch` processes of a volume, with our handlers.

Invariants: the watches run under our own root unit, outside the Consul agent (Debian's can't become
root). When one of them ends (a handler failed, the agent restarted), all end and the unit starts
them again: the first call comes at once then, so nothing is missed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from standfast.adapters.consul import DEFAULT_ADDRESS
from standfast.config.model import Config
from standfast.errors import ConfigError, Unreachable
from standfast.run import Child, kill_group, spawn

log = logging.getLogger(__name__)

POLL_S = 0.5
PLACES = (
    Path(sys.prefix) / "share/standfast/watches",
    Path("/usr/share/standfast/watches"),
    Path(__file__).resolve().parent.parent / "watches",
)


def definitions(config: Config) -> list[Mapping[str, Any]]:
    """The watches of the shipped definition, with this volume's names filled in."""
    for place in PLACES:
        path = place / "volume.json"
        if path.is_file():
            break
    else:
        raise ConfigError(f"volume.json is in none of {', '.join(map(str, PLACES))}")
    names = {"volume": config.volume, "service": config.service, "prefix": config.consul.prefix}

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(**names)
        if isinstance(value, list):
            return [fill(item) for item in value]
        return value

    watches = json.loads(path.read_text())["watches"]
    return [{key: fill(value) for key, value in watch.items()} for watch in watches]


def argv(watch: Mapping[str, Any], address: str) -> list[str]:
    """The `consul watch` command of one definition."""
    options = [f"-{key}={watch[key]}" for key in ("type", "service", "key") if key in watch]
    return ["consul", "watch", f"-http-addr={address}", "-shell=false", *options, *watch["handler"]]


def environment(config: Config) -> dict[str, str]:
    """How the consul command authenticates: by files, never by an argument."""
    files = {
        "CONSUL_HTTP_TOKEN_FILE": config.consul.token_file,
        "CONSUL_CACERT": config.consul.ca_cert,
        "CONSUL_CLIENT_CERT": config.consul.client_cert,
        "CONSUL_CLIENT_KEY": config.consul.client_key,
    }
    return {name: str(path) for name, path in files.items() if path is not None}


def _start(op: str, command: list[str], config: Config) -> Child:
    with Path(os.devnull).open("rb") as nothing:
        # Handlers speak to the journal, as this process does.
        return spawn(op, command, stdin=nothing, stdout=2, stderr=2, env=environment(config))


def main(config: Config) -> int:
    """Run all watches until one ends (Unreachable) or SIGTERM (0)."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    places = (*config.consul.addresses, os.environ.get("CONSUL_HTTP_ADDR"), DEFAULT_ADDRESS)
    address = next(place for place in places if place)
    children: list[Child] = []
    try:
        for watch in definitions(config):
            command = argv(watch, address)
            children.append(_start(f"watch:{watch['type']}", command, config))
        while not stop.wait(POLL_S):
            for child in children:
                if child.poll() is not None:
                    raise Unreachable(
                        f"`consul watch` ended with status {child.returncode}: starting all again"
                    )
    finally:
        for child in children:
            kill_group(child)
    return 0
