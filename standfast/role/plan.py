"""The steps that follow from a decision, as data: pure, in an order that is tested.

Invariants: a promotion registers in Consul last; a demotion deregisters first and sends `clean`
last; each step can be repeated, so a plan cut anywhere is run again from its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from standfast.config.model import Config
from standfast.role.decision import Action, Decision


class Do(StrEnum):
    """Every effect that a plan may have, and what it says about itself.

    `role.steps` has one function for each.
    """

    says: str
    """With the words of `_steps` in braces."""

    def __new__(cls, name: str, says: str) -> Do:
        do = str.__new__(cls, name)
        do._value_, do.says = name, says
        return do

    ASK_HOOKS = "ask-hooks", "ask the pre-promote hooks"
    TELL_HOOKS = "tell-hooks", "run the pre-demote hooks"
    CLAIM_LEASE = "claim-lease", "take the lease, to start from {source}"
    START_LEASE = "start-lease", "have the lease process run"
    PREPARE_VOLUME = "prepare-volume", "make {live} this epoch's writable subvolume"
    EXPORT = "export", "export {live}"
    BIND = "bind", "show it at {bind}"
    START_NFS = "start-nfs", "start the NFS server (the guard has the last word)"
    OPEN_PORT = "open-port", "open the NFS port for as long as the lease lasts"
    CHECK_SERVING = "check-serving", "check that it answers"
    REGISTER = "register", "register {service} in Consul"
    PREPARE_JOBS = (
        "prepare-jobs",
        "have {to} show the primary's meta in Nomad, and take no jobs until it is primary",
    )
    PRE_COPY = "pre-copy", "replicate to {to} while still serving"
    RELEASE_JOBS = (
        "release-jobs",
        "stop the jobs that are constrained to the primary, and keep Nomad from placing them here",
    )
    DEREGISTER = "deregister", "deregister {service}"
    CLOSE_PORT = "close-port", "shut the NFS port"
    SHUT_FENCE = "shut-fence", "shut the NFS port"
    STOP_LEASE = "stop-lease", "end the lease process"
    STOP_NFS = "stop-nfs", "stop the NFS server and check that no thread is left"
    UNEXPORT = "unexport", "remove the export"
    UNBIND = "unbind", "unmount {bind}"
    READ_ONLY = "read-only", "make {live} read-only"
    READ_ONLY_IF_THERE = "read-only-if-there", "make {live} read-only, if it is there"
    NO_WRITERS = "no-writers", "check that nobody has a file of {live} open for writing"
    FINAL_SNAPSHOT = "final-snapshot", "take the final snapshot"
    SALVAGE_SNAPSHOT = "salvage-snapshot", "take the final snapshot, if there is anything new"
    FINAL_COPY = "final-copy", "replicate it to {to}"
    RELEASE = "release", "give the lease up{to_whom}"
    SURRENDER = "surrender", "shut the NFS port and give the lease up{to_whom}"
    AWAIT_SUCCESSOR = "await-successor", "wait until {to} serves"
    KEEP_DIVERGED = "keep-diverged", "keep {live} aside as diverged"
    RETIRE_TREE = "retire-tree", "put {live} aside{same}"
    FORGET = "forget", "be a standby"


# What looks for the volume's tree or makes it; and the claim to a lease, as one that is held
# without a tree keeps others from serving. What ends serving needs no disk, and what puts the tree
# away looks for itself: of an epoch that never had one there is nothing to put away.
ON_THE_TREE = frozenset(
    {
        Do.CLAIM_LEASE,
        Do.PREPARE_VOLUME,
        Do.BIND,
        Do.EXPORT,
        Do.PRE_COPY,
        Do.READ_ONLY,
        Do.NO_WRITERS,
        Do.FINAL_SNAPSHOT,
        Do.FINAL_COPY,
    }
)


@dataclass(frozen=True, slots=True)
class Step:
    """One effect, and what it says about itself in progress and in `--dry-run`."""

    do: Do
    says: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in their order. `undo` is run when a step before the point of no return fails."""

    name: str
    steps: tuple[Step, ...]
    undo: tuple[Step, ...] = ()
    no_return: Do | None = None
    """Once this step has begun, there is no going back."""

    @property
    def undoable_at(self) -> frozenset[Do]:
        names = [step.do for step in self.steps]
        end = names.index(self.no_return) if self.no_return in names else len(names)
        return frozenset(names[:end])


@dataclass(frozen=True, slots=True)
class Names:
    """What the steps' sentences speak of."""

    live: str
    bind: str
    service: str
    jobs: bool = False
    """Nomad's jobs follow the role."""


FOR_JOBS = frozenset({Do.PREPARE_JOBS, Do.RELEASE_JOBS})
FOR_A_SUCCESSOR = frozenset({Do.PREPARE_JOBS, Do.PRE_COPY, Do.FINAL_COPY, Do.AWAIT_SUCCESSOR})

SERVE = (
    Do.PREPARE_VOLUME,
    Do.BIND,
    Do.EXPORT,
    Do.START_NFS,
    Do.OPEN_PORT,
    Do.CHECK_SERVING,
    Do.REGISTER,
)


def _steps(names: Names, *order: Do, to: str | None = None, source: str = "") -> tuple[Step, ...]:
    """Returns the steps in this order, without those for what there is not: jobs, a successor."""
    left_out = frozenset[Do]()
    if not names.jobs:
        left_out |= FOR_JOBS
    if to is None:
        left_out |= FOR_A_SUCCESSOR
    words = {
        "live": names.live,
        "bind": names.bind,
        "service": names.service,
        "source": source,
        "to": to,
        "to_whom": f" to {to}" if to else "",
        # A surrender may come without a final snapshot.
        "same": "" if Do.SALVAGE_SNAPSHOT in order else " (the final snapshot is the same)",
    }
    return tuple(Step(do, do.says.format_map(words)) for do in order if do not in left_out)


def promotion(names: Names, source: str) -> Plan:
    """Takes over: the lease first, the registration last."""
    # Before the lease: a veto leaves everything as it was, for another node too.
    order = (Do.ASK_HOOKS, Do.CLAIM_LEASE, *SERVE)
    return Plan("promotion", _steps(names, *order, source=source))


def go_on(names: Names) -> Plan:
    """Finishes a promotion that was cut, or serves again after a demotion that was."""
    return Plan("go-on", _steps(names, Do.START_LEASE, *SERVE))


def demotion(names: Names, to: str | None) -> Plan:
    """Gives the role up in order; until the lease is released a failure is undone."""
    steps = _steps(
        names,
        # Before the copy, so that what is written meanwhile is in that.
        Do.PREPARE_JOBS,
        Do.PRE_COPY,
        # While everything is still served; they have a deadline, and no veto.
        Do.TELL_HOOKS,
        # While their files are still there, so that they end in order; they never keep the storage
        # from going.
        Do.RELEASE_JOBS,
        Do.DEREGISTER,
        Do.CLOSE_PORT,
        Do.STOP_NFS,
        Do.UNEXPORT,
        Do.UNBIND,
        Do.READ_ONLY,
        # What was opened before goes on being written, after the final snapshot too.
        Do.NO_WRITERS,
        Do.FINAL_SNAPSHOT,
        Do.FINAL_COPY,
        Do.RELEASE,
        Do.STOP_LEASE,
        Do.RETIRE_TREE,
        Do.FORGET,
        Do.AWAIT_SUCCESSOR,
        to=to,
    )
    name = "demotion" if to is None else "switchover"
    return Plan(name, steps, undo=go_on(names).steps, no_return=Do.RELEASE)


def surrender(names: Names) -> Plan:
    """Gives up a role that this node holds and can't carry out: it keeps others from it."""
    steps = _steps(
        names,
        Do.START_LEASE,
        Do.SHUT_FENCE,
        Do.RELEASE_JOBS,
        Do.DEREGISTER,
        Do.STOP_NFS,
        Do.UNEXPORT,
        Do.UNBIND,
        Do.READ_ONLY_IF_THERE,
        Do.SALVAGE_SNAPSHOT,
        Do.RELEASE,
        Do.STOP_LEASE,
        Do.RETIRE_TREE,
        Do.FORGET,
    )
    return Plan("surrender", steps)


def hand_over_as_it_is(names: Names, to: str | None) -> Plan:
    """Gives up a role whose file system takes no writes: there is no final snapshot to wait for.

    What is left to do here follows by itself, when the disk lets it (`put_away`).
    """
    order = (Do.TELL_HOOKS, Do.RELEASE_JOBS, Do.DEREGISTER, Do.SURRENDER, Do.AWAIT_SUCCESSOR)
    return Plan("surrender", _steps(names, *order, to=to))


def put_away(names: Names) -> Plan:
    """Does the rest of an orderly demotion whose lease is given up."""
    steps = _steps(
        names,
        Do.SHUT_FENCE,
        Do.DEREGISTER,
        Do.STOP_NFS,
        Do.UNEXPORT,
        Do.STOP_LEASE,
        Do.READ_ONLY,
        Do.UNBIND,
        Do.RETIRE_TREE,
        Do.FORGET,
    )
    return Plan("put-away", steps)


def step_down(names: Names) -> Plan:
    """Stops at once, as the lease is another's, then keeps what was written here."""
    steps = _steps(
        names,
        Do.SHUT_FENCE,
        Do.STOP_LEASE,
        Do.DEREGISTER,
        Do.STOP_NFS,
        Do.UNEXPORT,
        Do.READ_ONLY,
        Do.UNBIND,
        Do.KEEP_DIVERGED,
        Do.FORGET,
    )
    return Plan("step-down", steps)


def names_of(config: Config) -> Names:
    paths = config.paths
    return Names(
        str(paths.live),
        str(paths.bind),
        config.service,
        jobs=config.nomad.enabled,
    )


def plan_for(decision: Decision, config: Config) -> Plan | None:
    """Returns the plan that carries a decision out; None: there is nothing to do."""
    names = names_of(config)
    match decision.action:
        case Action.PROMOTE:
            source = "its own tree" if decision.base is None else str(decision.base.snapshot.name)
            return promotion(names, source)
        case Action.FINISH_PROMOTION | Action.HOLD_LEASE:
            return go_on(names)
        case Action.FINISH_DEMOTION:
            return put_away(names)
        case Action.STEP_DOWN:
            return step_down(names)
        case _:
            return None
