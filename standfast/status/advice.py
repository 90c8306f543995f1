"""What to do next, for each reason that keeps a volume from being failed over or from being seen.

The texts are those of docs/reason-codes.md, word for word; a test ties the two together.
"""

from __future__ import annotations

from collections.abc import Mapping

from standfast.reasons import Reason

NEXT: Mapping[Reason, str] = {
    Reason.MANUAL_MODE: "`standfast promote` on the standby that it names.",
    Reason.PAUSED: "`standfast resume`, or `standfast promote` by hand.",
    Reason.ON_HOLD: "`standfast standby release NODE` when it is fit to serve again.",
    Reason.NO_PUBLISHED_SNAPSHOT: "`standfast replicate` on the primary; or promote another "
    "standby.",
    Reason.TOO_OLD: "`standfast promote --accept-data-loss` if that loss is acceptable; the "
    "history notes it.",
    Reason.LEADER_MISSING: "A living primary writes it again. Without one, `standfast promote` on "
    "the best standby.",
    Reason.NOT_A_CANDIDATE: "`standfast promote` here if it is to be this node; check "
    "`[nodes]` on all nodes.",
    Reason.NOT_READY: "Mend what is named; `standfast doctor` on that node looks again. "
    "`--despite CHECKS` goes past what is only better mended.",
    Reason.COOLDOWN: "Find out why the primary died, or can't serve, then `standfast promote`.",
    Reason.NO_STANDBY_READY: "`standfast standby list`; start the standby, replicate to it.",
    Reason.FOREIGN_VALUE: "`consul kv get KEY`; restore or delete it.",
    Reason.NOT_INITIALISED: "`standfast promote` on the node that has the data.",
    Reason.CONSUL_UNREACHABLE: "`systemctl status consul`; check `consul.addresses`.",
    Reason.CONSUL_TIMEOUT: "Consul hangs or the network drops packets: `consul operator raft "
    "list-peers`.",
    Reason.CONSUL_NO_QUORUM: "Bring back a majority of the servers. The primary goes on by itself "
    "afterwards.",
    Reason.CONSUL_LIMITED: "Consul's `limits` and `request_limits`; what else asks it so often?",
    Reason.CONSUL_DENIED: "Check the token in `consul.token_file` and its policy.",
    Reason.CONSUL_GARBLED: "Is something else listening at that address, or a proxy in between?",
    Reason.CONSUL_BLIND_TOKEN: 'Give it `service "consul" { policy = "read" }` and '
    '`node_prefix "" { policy = "read" }`.',
}

REPLICATE = "`standfast replicate` on the primary; `standfast doctor` there says what fails."
"""While a primary serves, for too old a snapshot or none."""


def next_step(code: str | None) -> str | None:
    """Returns what to do about a reason code; None: nothing is known that would help."""
    try:
        return None if code is None else NEXT.get(Reason(code))
    except ValueError:
        return None
