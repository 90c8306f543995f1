"""`standfast-watch@V.service`: the `consul watch` processes of a volume, with our handlers.

Invariants: the watches run under our own root unit, outside the Consul agent (Debian's can't become
root). When one of them ends (a handler failed, the agent restarted), all end and the unit starts
them again: the first call comes at once then, so nothing is missed. When Consul's leader changes,
they begin anew as well: a query that waits at a server which died is given up only after 40 s
(seen on Consul 1.8: the connection's keepalive), and the primary may have been that server.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.errors import ConfigError, ConsulError, Unreachable
from standfast.system.clock import Deadline
from standfast.system.environment import TAKEN
from standfast.system.run import REAP_S, Child, kill_group, spawn

log = logging.getLogger(__name__)

POLL_S = 0.5
LEADER_EVERY_S = 2.0
LEADER_ANSWER_S = 1.5
MISSED = 2
PLACES = (
    Path(sys.prefix) / "share/standfast/watches",
    Path("/usr/share/standfast/watches"),
    Path(__file__).resolve().parents[2] / "watches",
)


def _programs() -> Path | None:
    """Returns where the program lies that runs: its first lines name it by its real path."""
    program = Path(sys.argv[0])
    return program.parent if program.is_absolute() else None


def definitions(config: Config) -> list[Mapping[str, Any]]:
    """Returns the watches of the shipped definition, with this volume's names filled in."""
    programs = _programs()
    # On NixOS the interpreter has a prefix of its own.
    beside = [] if programs is None else [programs.parent / "share/standfast/watches"]
    places = (*beside, *PLACES)
    for place in places:
        path = place / "volume.json"
        if path.is_file():
            break
    else:
        raise ConfigError(f"volume.json is in none of {', '.join(map(str, places))}")
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
    """Returns the `consul watch` command of one definition."""
    options = [f"-{key}={watch[key]}" for key in ("type", "service", "key") if key in watch]
    return ["consul", "watch", f"-http-addr={address}", "-shell=false", *options, *watch["handler"]]


def with_own_handler(watch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the same with its handler's path where that lies beside the program that runs: an
    installation calls its own, whatever PATH has."""
    name, *arguments = watch["handler"]
    programs = _programs()
    if programs is None or not (programs / name).is_file():
        return watch
    return {**watch, "handler": [str(programs / name), *arguments]}


def addresses(config: Config) -> Sequence[str]:
    """Returns where to ask, with the schemes that the gateway uses: by itself the consul command
    would send the token by plain HTTP."""
    return [endpoint.url for endpoint in ConsulGateway.from_config(config).endpoints]


def environment(config: Config) -> dict[str, str]:
    """Returns how the consul command authenticates, never by an argument, and what the environment
    said to us: its handlers are programs of ours that ask Consul and Nomad."""
    files = {
        "CONSUL_HTTP_TOKEN_FILE": config.consul.token_file,
        "CONSUL_CACERT": config.consul.ca_cert,
        "CONSUL_CLIENT_CERT": config.consul.client_cert,
        "CONSUL_CLIENT_KEY": config.consul.client_key,
    }
    # The address has its scheme, and a file goes before a variable: as the gateway has it.
    ours = {
        name: text
        for name, text in TAKEN.items()
        if name not in ("CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY", "CONSUL_HTTP_TOKEN_FILE")
    }
    if config.consul.token_file is not None:
        ours.pop("CONSUL_HTTP_TOKEN", None)
    return ours | {name: str(path) for name, path in files.items() if path is not None}


def _start(op: str, command: list[str], config: Config) -> Child:
    with Path(os.devnull).open("rb") as nothing:
        # Handlers speak to the journal, as this process does.
        return spawn(op, command, stdin=nothing, stdout=2, stderr=2, env=environment(config))


class Vantage:
    """Keeps the address to watch from, and tells whether what is seen there needs a new look.

    `asks` has, by address and in the order of preference, who returns the address of Consul's
    leader, empty or None while there is none. Invariant: an address that answers isn't left for one
    before it in that order, so that watches don't begin anew for nothing.
    """

    def __init__(self, asks: Mapping[str, Callable[[], str | None]]) -> None:
        self._asks = asks
        self.address = next(iter(asks))
        self._known: str | None = None
        self._missed = 0
        self._choose()

    def changed(self) -> bool:
        """Tells whether Consul has another leader, is back after it gave no answer, or has to be
        asked elsewhere as this address gives none; two answers that are missing may be an election.
        """
        now = self._asks[self.address]()
        if now:
            moved = now != self._known or self._missed >= MISSED
            self._known, self._missed = now, 0
            return moved
        self._missed += 1
        return self._missed >= MISSED and self._choose()

    def _choose(self) -> bool:
        """The first address that answers; whether there is one."""
        for address, ask in self._asks.items():
            if leader := ask():
                self.address, self._known, self._missed = address, leader, 0
                return True
        return False


def _asking(config: Config, address: str) -> Callable[[], str | None]:
    """Asks that address alone; every call ends within LEADER_ANSWER_S."""
    there = replace(config, consul=replace(config.consul, addresses=(address,)))
    gateway = ConsulGateway.from_config(there, timeout_s=LEADER_ANSWER_S)

    def ask() -> str | None:
        try:
            return gateway.leader()
        except ConsulError as error:
            log.debug("%s", error)
            return None

    return ask


def main(config: Config) -> int:
    """Runs all watches until one ends (Unreachable) or SIGTERM (0)."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    vantage = Vantage({address: _asking(config, address) for address in addresses(config)})
    while not stop.is_set():
        _run(config, vantage, stop)
    return 0


def _run(config: Config, vantage: Vantage, stop: threading.Event) -> None:
    """All watches, until they have to begin anew."""
    children: list[Child] = []
    next_look = Deadline.after(LEADER_EVERY_S)
    try:
        for watch in definitions(config):
            command = argv(watch, vantage.address)
            children.append(_start(f"watch:{watch['type']}", command, config))
        while not stop.wait(POLL_S):
            for child in children:
                if child.poll() is not None:
                    raise Unreachable(
                        f"`consul watch` ended with status {child.returncode}: starting all again"
                    )
            if next_look.expired:
                if vantage.changed():
                    log.info("the watches begin anew, at %s", vantage.address)
                    for child in children:
                        # Not its group: a handler at work goes on to its end.
                        child.kill()
                        child.wait(REAP_S)
                    return
                next_look = Deadline.after(LEADER_EVERY_S)
    finally:
        for child in children:
            kill_group(child)
