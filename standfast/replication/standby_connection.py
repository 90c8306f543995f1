"""The way to a standby, step by step: configured, a key, a door that opens for one thing only.

Invariant: nothing is sent here; what is changed is this node's own key and the note of the
standby's host key, and, when the operator asks for that, the line on the standby.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from standfast.config.model import Config
from standfast.errors import Refused, StandfastError, did_you_mean
from standfast.reasons import Reason
from standfast.replication.authorized import Bound, authorized_line, nixos_form
from standfast.replication.keys import (
    OF_SESSION,
    PublicKey,
    as_options,
    ensure_key,
    from_own_address,
    known_hosts,
    public_key,
    public_path,
    ssh_argv,
    with_known_hosts,
)
from standfast.replication.session import SSH_FAILED
from standfast.replication.standby_step import Mark, Step
from standfast.system.clock import Deadline
from standfast.system.lines import lines_of
from standfast.system.run import Completed, run
from standfast.text import clean

KEY_S = 20.0
PROBE_S = 40.0
_TOO_FREE = "standfast-is-not-restricted"


@dataclass(frozen=True, slots=True)
class StandbyConnection:
    """Sets up and checks the way from this node to a standby."""

    config: Config
    standby: str
    install_key: bool = False
    dry_run: bool = False

    def steps(self) -> Iterator[Step]:
        """Yields the steps, in their order; ends after a BAD one."""
        config = self.config
        if self.standby not in config.standbys:
            yield self._unknown()
            return
        address = config.nodes[self.standby].address
        yield Step("node", Mark.OK, f"{self.standby} is in [nodes], at {address}")
        if config.replication.command:
            yield Step(
                "key",
                Mark.LEFT,
                "replication.command is the transport: it needs no key of Standfast's",
            )
            return
        step, key = self._key()
        yield step
        if step.mark is Mark.BAD:
            return
        if key is None:
            yield Step("door", Mark.LEFT, f"would show the new key to {self.standby}")
            return
        step = self._door(key)
        if step.mark in (Mark.BAD, Mark.WORD) and self.install_key:
            installed = self._install(key)
            yield installed
            if installed.mark is not Mark.OK:
                return
            step = self._door(key)
        yield step

    # The configuration

    def _unknown(self) -> Step:
        config, node = self.config, self.standby
        where = f"in {config.source} on every storage node ({', '.join([*config.nodes, node])}):"
        if node == config.node:
            error = Refused(Reason.UNKNOWN_NODE, f"{node} is this node: run it on the primary")
            return Step("node", Mark.BAD, str(error), error=error)
        error = Refused(
            Reason.UNKNOWN_NODE,
            f"{node} is not in [nodes] of {config.source} on {config.node}"
            f"{did_you_mean(node, config.standbys)}",
        )
        fix = (
            f"{where}",
            f"  [nodes.{node}]",
            '  address = "ITS ADDRESS"',
            "then on each, standbys first, the primary last: standfast config check && "
            f"systemctl restart standfast-agent@{config.volume}",
            f"on the primary also: systemctl restart standfast-lease@{config.volume}",
        )
        return Step("node", Mark.BAD, str(error), fix, error)

    # The key

    def _key(self) -> tuple[Step, PublicKey | None]:
        path = self.config.replication.ssh_key
        deadline = Deadline.after(KEY_S)
        try:
            if self.dry_run and not path.exists():
                return Step("key", Mark.LEFT, f"would make {path}"), None
            made = ensure_key(self.config, deadline)
            key = public_key(self.config, deadline)
        except (StandfastError, OSError) as error:
            return Step("key", Mark.BAD, str(error), error=error), None
        what = "made, its public half is" if made else "is there, its public half is"
        return Step("key", Mark.OK, f"{path} {what} {public_path(path)}"), key

    def _install(self, key: PublicKey) -> Step:
        """Over the operator's own ssh, not over the replication key."""
        config = self.config
        target = f"{config.replication.ssh_user}@{config.nodes[self.standby].address}"
        words = self._authorize(key)
        argv = ["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        # The host key that was just accepted for the replication key's door is known to this, too.
        argv += [*as_options(OF_SESSION), *with_known_hosts(config), target]
        # As the replication does: the standby looks from where this comes.
        argv[1:1] = from_own_address(config, self.standby, argv)
        if self.dry_run:
            return Step("install", Mark.LEFT, f"would run there, as {target}: {words}")
        try:
            done = run([*argv, words], deadline=Deadline.after(PROBE_S), op="install-key")
        except StandfastError as error:
            fix = (f"can you log in by `ssh {target}`? else put it there yourself:",)
            return Step("install", Mark.BAD, str(error), (*fix, *self._by_hand(key)), error)
        told = lines_of(done.stdout.strip())
        return Step("install", Mark.OK, told[-1] if told else f"done as {target}")

    def _authorize(self, key: PublicKey) -> str:
        """Returns the command that has to be run on the standby."""
        config = self.config
        words = ["standfast", "standby", "authorize", "--volume", config.volume]
        return shlex.join([*words, "--from", config.node, str(key)])

    def _by_hand(self, key: PublicKey) -> tuple[str, ...]:
        config = self.config
        user = config.replication.ssh_user
        line = authorized_line(config.volume, Bound.to(config, config.node), key)
        return (
            f"on {self.standby}: {self._authorize(key)}",
            f"or the line itself, in authorized_keys of {user} there:",
            f"  {line}",
            "or on NixOS (a module that puts a restriction of its own before each key can't bind "
            f"it: then the line goes into users.users.{user}.openssh.authorizedKeys.keys):",
            f"  {nixos_form([line])}",
        )

    # The door

    def _door(self, key: PublicKey) -> Step:
        """Asks for something else than receive: what comes back says who opens."""
        hosts = known_hosts(self.config)
        if not self.dry_run:
            hosts.parent.mkdir(parents=True, exist_ok=True)
        before = _text(hosts)
        argv = ssh_argv(self.config, self.standby, accept_new=not self.dry_run)
        try:
            done = run(
                [*argv, f"echo {_TOO_FREE}"],
                deadline=Deadline.after(PROBE_S),
                op=f"door:{self.standby}",
                check=False,
            )
        except StandfastError as error:
            return Step("door", Mark.BAD, str(error), error=error)
        step = self._judge(done, key)
        if step.mark is not Mark.BAD and _text(hosts) != before:
            return replace(step, evidence=f"{step.evidence}; its host key was noted in {hosts}")
        return step

    def _judge(self, done: Completed, key: PublicKey) -> Step:
        node, config = self.standby, self.config
        last = clean((lines_of(done.stderr.strip()) or ["it said nothing"])[-1].strip())
        if _TOO_FREE in map(str.strip, lines_of(done.stdout)):
            return self._bad(
                f"{node} lets the key run any command, a shell too",
                f"on {node}, remove the key's line from authorized_keys of "
                f"{config.replication.ssh_user}, then",
                *self._by_hand(key),
                f"if it isn't there: `ssh -G {config.nodes[node].address}` names another "
                f"IdentityFile, with which you were let in",
            )
        refusal = _refusal_in(done.stdout)
        if refusal is not None:
            return self._bound(refusal, key)
        if done.returncode != SSH_FAILED:
            return self._bad(
                f"{node} answers, but not as `standfast receive` does: {last}",
                f"is Standfast installed on {node}, and configured for {config.volume}? "
                f"there: standfast config check",
            )
        if "Host key verification failed" in done.stderr:
            return self._unknown_host(done.stderr)
        if "Permission denied" in done.stderr:
            return self._bad(f"{node} doesn't let the key in: {last}", *self._by_hand(key),
                             "or from here, over your own ssh: "
                             f"standfast standby add {node} --install-key",
                             "is the line there already? Its from= has to name the address that "
                             f"{node} sees: another one behind a ProxyJump or NAT")  # fmt: skip
        return self._bad(
            f"{node} can't be reached at {config.nodes[node].address}: {last}",
            "is it up, is the address in [nodes] right, and does its sshd listen?",
        )

    def _bound(self, refusal: dict[str, Any], key: PublicKey) -> Step:
        """An older version doesn't say to whom the key's line binds it."""
        node, config = self.standby, self.config
        receives = f"{node} lets the key receive and nothing else"
        bound = refusal.get("bound", config.node)
        if bound == config.node:
            return Step("door", Mark.OK, receives)
        if bound is not None:
            return self._bad(
                f"{node} takes the key for that of {clean(str(bound))[:80]}",
                f"on {node}, remove the key's line from authorized_keys of "
                f"{config.replication.ssh_user}, then",
                *self._by_hand(key),
            )
        evidence = f"{receives}, but its line there is an older version's: whoever has the key " \
                   f"passes for any node"  # fmt: skip
        fix = (*self._by_hand(key), f"or from here: standfast standby add {node} --install-key")
        return Step("door", Mark.WORD, evidence, fix)

    def _unknown_host(self, told: str) -> Step:
        node, address = self.standby, self.config.nodes[self.standby].address
        if "HAS CHANGED" not in told and self.dry_run:
            return Step("door", Mark.LEFT, f"would note the host key of {node}, not known yet")
        return self._bad(
            f"the host key of {node} is not the one that is known for {address}",
            f"was {node} installed anew? then: ssh-keygen -f {known_hosts(self.config)} "
            f"-R {address} (and wherever else it is known); if not, find out who answers there",
        )

    def _bad(self, evidence: str, *fix: str) -> Step:
        error = Refused(Reason.STANDBY_NOT_READY, evidence)
        return Step("door", Mark.BAD, evidence, fix, error)


def _refusal_in(out: str) -> dict[str, Any] | None:
    lines = lines_of(out.strip())
    try:
        doc = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(doc, dict) and doc.get("message_type") == "refusal"
    return doc if is_one else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
