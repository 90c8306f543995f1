"""What `consul watch` does on each node, without a consul binary: runs the handlers on a change.

Invariant: a handler gets on stdin exactly what the endpoint answered, as from `consul watch`; its
first call comes at once. One that fails is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from standfast.config.model import Config
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.ledger import Every
from standfast.demo.nodes import Node
from standfast.demo.screen import Screen
from standfast.system.clock import monotonic

WAIT = "1s"


class _Watch:
    """One watch, for all nodes: one endpoint, one handler."""

    def __init__(self, target: str, handler: str, *, single: bool) -> None:
        self.target = target
        self.handler = handler
        self.single = single
        self.index = 0
        self.calls = 0


class Watches:
    """The watches of `watches/volume.json`."""

    def __init__(
        self, consul: EmbeddedConsul, config: Config, nodes: Mapping[str, Node], screen: Screen
    ) -> None:
        self._consul = consul
        self._nodes = nodes
        self._screen = screen
        self._watches = (
            _Watch(f"/v1/health/service/{config.service}", "data-services-changed", single=False),
            _Watch(f"/v1/kv/{config.key('epoch')}", "storage-role-changed", single=True),
        )
        self.eyes = tuple(
            Every(0.05, watch.handler, lambda watch=watch: self._look(watch))  # type: ignore[misc]
            for watch in self._watches
        )

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each handler ran."""
        return {watch.handler: watch.calls for watch in self._watches}

    def _look(self, watch: _Watch) -> None:
        alive = [node for node in self._nodes.values() if node.is_on and not node.is_cut_off]
        if not alive:
            return
        target = f"{watch.target}?index={watch.index}&wait={WAIT}"
        reply = self._consul.request(alive[-1].name, "GET", target)
        if reply is None or reply.status not in (200, 404):
            return
        index = int(reply.headers["X-Consul-Index"])
        if index == watch.index:
            return
        watch.index = index
        text = reply.body.decode() if reply.status == 200 else "null"
        if watch.single and reply.status == 200:
            text = json.dumps(json.loads(text)[0])
        self._call(watch, alive, text)

    def _call(self, watch: _Watch, nodes: list[Node], text: str) -> None:
        begun = monotonic()
        failed = []
        for node in nodes:
            done = node.call_handler(watch.handler, text)
            watch.calls += 1
            if done.returncode != 0 and node.is_on:
                failed.append(f"{node.name}: {done.stderr.strip()}")
        took_s = monotonic() - begun
        names = ", ".join(node.name for node in nodes)
        self._screen.say(f"handlers/{watch.handler} on {names} ({took_s:.1f} s)", mark=".")
        for line in failed:
            self._screen.say(f"handlers/{watch.handler} failed on {line}", mark="!")
