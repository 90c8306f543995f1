"""What units and handlers run: sets up the log, loads the configuration, hands over.

The modules that do the work are imported when they are wanted: start-up time is the user's.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from standfast.config.load import config_dir, load_stored, load_volume
from standfast.errors import ConfigError, Refused, UsageError
from standfast.events.log import set_up_log
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic

if TYPE_CHECKING:
    import argparse
    from types import SimpleNamespace

# The handler of the guard is ended by its own timer 3.4 s after its start, and has answered by 3 s.
AHEAD_OF_TIMER_S = 0.4


def agent(args: argparse.Namespace) -> int:
    """Runs `standfast agent VOLUME`."""
    set_up_log()
    from standfast.agent import main as body
    from standfast.assembly.node import agent_of

    return body.main(load_volume(args.volume), agent_of)


def lease(args: argparse.Namespace) -> int:
    """Runs `standfast lease VOLUME`."""
    set_up_log()
    from standfast.assembly.node import lease_parts
    from standfast.lease import process

    config = load_volume(args.volume)
    try:
        return process.main(config, lease_parts)
    except Refused as refusal:
        from standfast.events.events import Kind, happened, tell

        text = f"{refusal.reason}: {refusal}"
        tell(happened(config, Kind.CLAIM_REFUSED, text, reason=refusal.reason))
        return refusal.exit_code


def watch(args: argparse.Namespace) -> int:
    """Runs `standfast watch VOLUME`: on every node, clients too."""
    set_up_log()
    from standfast.consul import watch as body

    return body.main(load_volume(args.volume, require_storage=False))


def guard(args: argparse.Namespace) -> int:
    """Runs `standfast guard`: for one volume or, as the NFS server's unit does, for all."""
    started = monotonic()
    last_resort_s = signal.getitimer(signal.ITIMER_REAL)[0]
    set_up_log()
    from standfast import guard as body

    try:
        configs = load_stored() if args.volume is None else (load_volume(args.volume),)
    except ConfigError as error:
        if args.volume is None and body.is_foreign(config_dir()):
            print("guard: no volume is configured on this node: its NFS server is its own")
            return 0
        print(body.words(body.refusal(error)), file=sys.stderr)
        return 1
    deadline_s = min(config.guard.deadline for config in configs)
    if last_resort_s:
        # The handler's timer runs since before the imports, and ends the process without a word.
        deadline_s = min(deadline_s, last_resort_s - AHEAD_OF_TIMER_S)
    return body.main(configs, Deadline(started + deadline_s))


def receive(args: argparse.Namespace | SimpleNamespace) -> int:
    """Runs `standfast receive VOLUME --from NODE` in this process: stdout belongs to the sender.

    A key that may receive several volumes has a forced command without one: sshd then tells by
    SSH_ORIGINAL_COMMAND which one the sender asked for.
    """
    set_up_log()
    from standfast.assembly.parts import open_store
    from standfast.consul.gateway import ConsulGateway
    from standfast.replication import receive as body
    from standfast.replication import wire

    bound = getattr(args, "from")  # the option's name is no name in Python
    try:
        config = load_volume(args.volume or _asked_volume(os.environ))
    except ConfigError as error:  # the sender's log is where somebody looks
        knows = bound is not None or not os.environ.get("SSH_CONNECTION")
        text = str(error) if knows else "on this standby: standfast config check"
        print(wire.dump(wire.Refusal(Reason.CONFIG_INVALID, text, bound)))
        return error.exit_code
    except Refused as refusal:
        print(wire.dump(wire.Refusal(refusal.reason, str(refusal), bound)))
        return refusal.exit_code
    gateway, store = ConsulGateway.from_config(config), open_store(config)
    return body.receive(config, store, gateway, sys.stdin.fileno(), sys.stdout, bound=bound)


def _asked_volume(environ: Mapping[str, str]) -> str | None:
    """Returns the volume that the sender named; None, when it named none, is the only one."""
    asked = environ.get("SSH_ORIGINAL_COMMAND", "").strip()
    volume = asked.removeprefix("standfast receive ")
    if asked and (volume == asked or not re.fullmatch(r"[a-z0-9-]{1,63}", volume)):
        raise Refused(
            Reason.PROTOCOL,
            f"this key may only run `standfast receive VOLUME`, not {asked[:80]!r}",
        )
    return volume or None


def fence(args: argparse.Namespace) -> int:
    """Runs `standfast fence VOLUME`: closes the port and stops the server."""
    set_up_log()
    from standfast.assembly.parts import parts
    from standfast.lease.cutoff import stop_for_good

    # It shuts a port: whoever may have written the file, no port is to stay open for that.
    config = load_volume(args.volume, acted_by=False)
    deadline = Deadline.after(config.nfs.start_timeout)
    stop_for_good(parts().fence(config), parts().nfs(config), deadline)
    return 0


def exporter(args: argparse.Namespace) -> int:
    """Runs `standfast exporter` for every volume of this node."""
    set_up_log()
    configs = load_stored()
    if args.textfile is not None:
        if args.listen:
            raise UsageError("--textfile writes once and listens nowhere: leave --listen out")
        from standfast.exporter import textfile

        textfile.write(configs, Path(args.textfile))
        return 0
    from standfast.exporter.exporter import DEFAULT_LISTEN, serve

    serve(configs, args.listen or DEFAULT_LISTEN)
    return 0


def reconcile(args: argparse.Namespace) -> int:
    """Runs `standfast reconcile`: the volume's agent, or each agent here, looks again now."""
    set_up_log()
    from standfast.cli import wake as body
    from standfast.cli.targets import for_each_volume

    return for_each_volume(args.volume, lambda config: body.main(config, args.event))
