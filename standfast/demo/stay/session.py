"""`standfast demo --stay`: the cluster stays up, and its operator tries it at a prompt.

Invariant: a command changes the cluster only as the world would (power, a frozen process, a cut
network) or by `standfast` on a node. What must hold is judged all the time, as in the story.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from standfast.demo.cluster import ADDRESSES, Cluster, free_port
from standfast.demo.ledger import Every
from standfast.demo.nodes import Node
from standfast.demo.stay.commands import (
    ALL,
    COMMAND,
    NAMES,
    NODE,
    ON_NODE,
    SECONDS,
    Asked,
    help_text,
)
from standfast.demo.stay.news import SILENT_S, News
from standfast.demo.stay.prompt import Prompt, PromptScreen
from standfast.demo.story import STEP_S, Times, first_lines, first_promotion
from standfast.errors import StandfastError, UsageError
from standfast.reasons import Reason
from standfast.system.clock import monotonic

REASON = ("--reason", "asked at the prompt of the demo")
INTRODUCTION = """\
Real are the agents, leases, guard, replication, handlers, exporters and commands.
Stand-ins are an embedded Consul, directories for btrfs, a small file server for
NFS and a file for the firewall. There is no systemd and no Nomad, and all nodes
share one clock. Shorter than by default are the lease (the fast profile),
failover_after and surrender_after ({after:g} s instead of 60 s) and failover_cooldown
(none instead of 10 min). Each standby gets a snapshot every {interval:g} s.

The status page of each node, by its exporter:
{pages}

Any command in another terminal; what a node calls `/` is the directory of its
program:
{programs}

Here: `kill zippy`, `freeze lease`, `cut consul`, `switchover`, ...; `help` lists
all of them. Ctrl-D ends the demo and leaves nothing."""


class Session:
    """What the commands do."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._say = cluster.screen.say
        self._page_port = free_port(tuple(ADDRESSES.values()))

    def begin(self) -> None:
        """Everything starts, as in the story; the status pages, too."""
        cluster, nodes = self._cluster, self._cluster.nodes.values()
        first_promotion(cluster, Times())
        for node in nodes:
            node.start_exporter(self._page_port)
        first_lines(cluster)
        cluster.settle_down()
        cluster.wait_for("the status pages", STEP_S, lambda: all(map(self._has_page, nodes)))
        cluster.look(Every(0.2, "news", News(cluster).tell))
        cluster.screen.chapter("3. It is yours")
        programs = "\n".join(f"  {node.program} status" for node in nodes)
        config = cluster.config
        cluster.screen.raw(
            INTRODUCTION.format(
                after=config.failover_after,
                interval=config.replication.interval,
                pages=self._pages(),
                programs=programs,
            )
        )

    def prompt(self, source: TextIO, *, interactive: bool) -> bool:
        """Until the end of the input; whether a script's command failed."""
        screen = self._cluster.screen
        assert isinstance(screen, PromptScreen)
        prompt = Prompt(screen, list(ADDRESSES), self._carry_out, source, interactive=interactive)
        prompt.run()
        return prompt.failed and not interactive

    def _carry_out(self, asked: Asked) -> None:
        DEEDS[asked.name](self, asked)

    # Faults

    def _kill(self, asked: Asked) -> None:
        node = self._named(asked)
        pids = node.cut_power()
        if not pids:
            raise UsageError(f"{node.name} is off already: `start {node.name}`")
        self._say(f"SIGKILL to all of {node.name} (pids {', '.join(map(str, pids))})", mark="!")

    def _start(self, asked: Asked) -> None:
        node = self._named(asked)
        if not node.is_on:
            self._cluster.replicated.pop(node.name, None)
            node.boot()
        node.start_agent()
        node.start_exporter(self._page_port)
        name = node.name
        self._until(f"{name} knows its role", f"status {name}", lambda: self._is_settled(node))

    def _freeze(self, asked: Asked) -> None:
        node, what = self._on(self._chosen(asked, self._primary)), asked.words["lease"]
        pid = node.freeze(what)
        self._say(f"SIGSTOP to the process `{what}` of {node.name} (pid {pid})", mark="!")

    def _thaw(self, asked: Asked) -> None:
        thawed = {node.name: node.thaw() for node in self._all_or(asked)}
        if not any(thawed.values()):
            raise UsageError("nothing is frozen there: `freeze lease`")
        for name, whats in thawed.items():
            for what in whats:
                self._say(f"SIGCONT to the process `{what}` of {name}")

    def _cut(self, asked: Asked) -> None:
        if asked.words.get(NODE) == ALL:
            self._cluster.consul.set_quorum(False)
            self._say("Consul has no quorum: it answers nobody", mark="!")
            return
        node = self._on(self._chosen(asked, self._primary))
        if node.is_cut_off:
            raise UsageError(f"{node.name} is cut off already: `heal`")
        node.cut_off()
        self._say(f"{node.name} reaches no Consul, and gossip calls it dead soon", mark="!")

    def _heal(self, asked: Asked) -> None:
        consul, everybody = self._cluster.consul, NODE not in asked.words
        cut = [node for node in self._all_or(asked) if node.is_on and node.is_cut_off]
        if not cut and not (everybody and not consul.has_quorum()):
            raise UsageError("nothing is cut off there: `cut consul`")
        if everybody:
            consul.set_quorum(True)
        for node in cut:
            node.reconnect()
        self._say(f"Consul answers {', '.join(node.name for node in cut) or 'everybody'} again")

    # What is waited for

    def _wait(self, asked: Asked) -> None:
        begun, end = monotonic(), monotonic() + float(asked.words.get(SECONDS, 0))
        if SECONDS in asked.words:
            self._cluster.wait_for("time passes", STEP_S + end - begun, lambda: monotonic() >= end)
        else:
            what = "the client writes, and each sound node knows its role"
            self._until(what, "status", lambda: self._is_calm(begun))

    def _is_calm(self, since: float) -> bool:
        last = self._cluster.ledger.last()
        if last is None or last.at <= max(since, monotonic() - SILENT_S):
            return False
        able = [node for node in self._cluster.nodes.values() if self._is_able(node)]
        answering = [node for node in able if not node.frozen()]
        return self._cluster[last.node] in able and all(map(self._is_settled, answering))

    def _is_able(self, node: Node) -> bool:
        """Whether it could go on serving."""
        return node.is_on and not node.is_cut_off and "lease" not in node.frozen()

    def _is_settled(self, node: Node) -> bool:
        status = node.status() or {}
        if status.get("role") == "primary":
            return node is self._cluster.primary()
        return bool(status.get("decision", {}).get("reason") == Reason.PRIMARY_ALIVE)

    def _until(self, what: str, look: str, happened: Callable[[], bool]) -> None:
        took_s = self._cluster.wait_for(f"{what} (see `{look}`)", 2 * STEP_S, happened)
        self._say(f"{what}: after {took_s:.1f} s", mark="+")

    # `standfast`

    def _run(self, node: Node, *words: str) -> None:
        status = self._cluster.command(self._on(node), *words)
        if status != 0:
            raise StandfastError(
                f"`standfast {words[0]}` on {node.name} ended with status {status}"
            )

    def _status(self, asked: Asked) -> None:
        self._run(self._chosen(asked, self._any), "status")

    def _doctor(self, asked: Asked) -> None:
        self._run(self._chosen(asked, self._any), "doctor")

    def _history(self, _: Asked) -> None:
        self._run(self._any(), "history")

    def _failback(self, _: Asked) -> None:
        self._run(self._primary(), "failback", *REASON)

    def _promote(self, asked: Asked) -> None:
        self._run(self._named(asked), "promote", *REASON)

    def _on_node(self, asked: Asked) -> None:
        self._run(self._named(asked), *asked.rest)

    def _switchover(self, asked: Asked) -> None:
        to = asked.words.get(NODE)
        self._run(self._primary(), "switchover", *(["--to", to] if to else []), *REASON)

    # What is shown

    def _write(self, _: Asked) -> None:
        cluster, now = self._cluster, monotonic()
        last = cluster.ledger.last()
        assert last is not None  # it wrote before the prompt came
        lines = [
            f"the client has {len(cluster.ledger)} lines acknowledged, the last "
            f"{now - last.at:.1f} s ago on {last.node}, epoch {last.epoch}"
        ]
        if cluster.client.trouble:
            lines.append(f"it waits: {cluster.client.trouble}")
        for name, (covered, snapshot) in sorted(cluster.replicated.items()):
            if name != last.node:
                lines.append(f"{name} lacks the last {now - covered:.1f} s at most ({snapshot})")
        cluster.screen.raw("\n".join(lines))

    def _page(self, _: Asked) -> None:
        self._cluster.screen.raw(self._pages() or "  every node is off: `start zippy`")

    def _help(self, asked: Asked) -> None:
        self._cluster.screen.raw(help_text(asked.words.get(COMMAND)))

    def _pages(self) -> str:
        on = [node.place.address for node in self._cluster.nodes.values() if node.is_on]
        return "\n".join(f"  http://{address}:{self._page_port}/" for address in on)

    def _has_page(self, node: Node) -> bool:
        try:
            socket.create_connection((node.place.address, self._page_port), 1.0).close()
        except OSError:
            return False
        return True

    # Which node

    def _named(self, asked: Asked) -> Node:
        return self._cluster[asked.words[NODE]]

    def _chosen(self, asked: Asked, otherwise: Callable[[], Node]) -> Node:
        return self._named(asked) if NODE in asked.words else otherwise()

    def _on(self, node: Node) -> Node:
        if not node.is_on:
            raise UsageError(f"{node.name} is off: `start {node.name}`")
        return node

    def _all_or(self, asked: Asked) -> Sequence[Node]:
        return [self._named(asked)] if NODE in asked.words else [*self._cluster.nodes.values()]

    def _primary(self) -> Node:
        node = self._cluster.primary()
        if node is None:
            raise UsageError("no node serves now: `wait`, or name the node")
        return node

    def _any(self) -> Node:
        """The primary, or one that is on."""
        nodes = [node for node in self._cluster.nodes.values() if node.is_on]
        if not nodes:
            raise UsageError("every node is off: `start zippy`")
        return self._cluster.primary() or nodes[0]


DEEDS: Mapping[str, Callable[[Session, Asked], None]] = {
    ON_NODE: Session._on_node,
    **{name: getattr(Session, f"_{name}") for name in NAMES if name != "quit"},
}
