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
    """Every effect that a plan may have; `role.steps` has one function for each."""

    ASK_HOOKS = "ask-hooks"
    TELL_HOOKS = "tell-hooks"
    CLAIM_LEASE = "claim-lease"
    START_LEASE = "start-lease"
    PREPARE_VOLUME = "prepare-volume"
    EXPORT = "export"
    BIND = "bind"
    START_NFS = "start-nfs"
    OPEN_PORT = "open-port"
    CHECK_SERVING = "check-serving"
    REGISTER = "register"
    PREPARE_JOBS = "prepare-jobs"
    PRE_COPY = "pre-copy"
    RELEASE_JOBS = "release-jobs"
    DEREGISTER = "deregister"
    CLOSE_PORT = "close-port"
    SHUT_FENCE = "shut-fence"
    STOP_LEASE = "stop-lease"
    STOP_NFS = "stop-nfs"
    UNEXPORT = "unexport"
    UNBIND = "unbind"
    READ_ONLY = "read-only"
    READ_ONLY_IF_THERE = "read-only-if-there"
    NO_WRITERS = "no-writers"
    FINAL_SNAPSHOT = "final-snapshot"
    SALVAGE_SNAPSHOT = "salvage-snapshot"
    FINAL_COPY = "final-copy"
    RELEASE = "release"
    SURRENDER = "surrender"
    AWAIT_SUCCESSOR = "await-successor"
    KEEP_DIVERGED = "keep-diverged"
    RETIRE_TREE = "retire-tree"
    FORGET = "forget"


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


def _serve(live: str, bind: str, service: str) -> tuple[Step, ...]:
    return (
        Step(Do.PREPARE_VOLUME, f"make {live} this epoch's writable subvolume"),
        Step(Do.BIND, f"show it at {bind}"),
        Step(Do.EXPORT, f"export {live}"),
        Step(Do.START_NFS, "start the NFS server (the guard has the last word)"),
        Step(Do.OPEN_PORT, "open the NFS port for as long as the lease lasts"),
        Step(Do.CHECK_SERVING, "check that it answers"),
        Step(Do.REGISTER, f"register {service} in Consul"),
    )


@dataclass(frozen=True, slots=True)
class Names:
    """What the steps' sentences speak of."""

    live: str
    bind: str
    service: str
    jobs: bool = False
    """Nomad's jobs follow the role."""


def _release_jobs(names: Names) -> tuple[Step, ...]:
    """While their files are still there, so that they end in order; they never keep the storage
    from going."""
    said = (
        "stop the jobs that are constrained to the primary, and keep Nomad from placing them here"
    )
    return (Step(Do.RELEASE_JOBS, said),) if names.jobs else ()


def _prepare_jobs(names: Names, to: str) -> tuple[Step, ...]:
    """Before the copy, so that what is written meanwhile is in that."""
    said = f"have {to} show the primary's meta in Nomad, and take no jobs until it is primary"
    return (Step(Do.PREPARE_JOBS, said),) if names.jobs else ()


# Before the lease: a veto leaves everything as it was, for another node too.
ASK_HOOKS = Step(Do.ASK_HOOKS, "ask the pre-promote hooks")
# While everything is still served; they have a deadline, and no veto.
TELL_HOOKS = Step(Do.TELL_HOOKS, "run the pre-demote hooks")


def promotion(names: Names, source: str) -> Plan:
    """Take over: the lease first, the registration last."""
    return Plan(
        "promotion",
        (
            ASK_HOOKS,
            Step(Do.CLAIM_LEASE, f"take the lease, to start from {source}"),
            *_serve(names.live, names.bind, names.service),
        ),
    )


def go_on(names: Names) -> Plan:
    """Finish a promotion that was cut, or serve again after a demotion that was."""
    return Plan(
        "go-on",
        (
            Step(Do.START_LEASE, "have the lease process run"),
            *_serve(names.live, names.bind, names.service),
        ),
    )


def demotion(names: Names, to: str | None) -> Plan:
    """Give the role up in order; until the lease is released a failure is undone."""
    copies = to is not None
    return Plan(
        "switchover" if copies else "demotion",
        (
            *(_prepare_jobs(names, to) if to is not None else ()),
            *((Step(Do.PRE_COPY, f"replicate to {to} while still serving"),) if copies else ()),
            TELL_HOOKS,
            *_release_jobs(names),
            Step(Do.DEREGISTER, f"deregister {names.service}"),
            Step(Do.CLOSE_PORT, "shut the NFS port"),
            Step(Do.STOP_NFS, "stop the NFS server and check that no thread is left"),
            Step(Do.UNEXPORT, "remove the export"),
            Step(Do.UNBIND, f"unmount {names.bind}"),
            Step(Do.READ_ONLY, f"make {names.live} read-only"),
            # What was opened before goes on being written, after the final snapshot too.
            Step(Do.NO_WRITERS, f"check that nobody has a file of {names.live} open for writing"),
            Step(Do.FINAL_SNAPSHOT, "take the final snapshot"),
            *((Step(Do.FINAL_COPY, f"replicate it to {to}"),) if copies else ()),
            Step(Do.RELEASE, f"give the lease up{f' to {to}' if to else ''}"),
            Step(Do.STOP_LEASE, "end the lease process"),
            Step(Do.RETIRE_TREE, f"put {names.live} aside (the final snapshot is the same)"),
            Step(Do.FORGET, "be a standby"),
            *((Step(Do.AWAIT_SUCCESSOR, f"wait until {to} serves"),) if copies else ()),
        ),
        undo=go_on(names).steps,
        no_return=Do.RELEASE,
    )


def surrender(names: Names) -> Plan:
    """Give up a role that this node holds and can't carry out: it keeps others from it."""
    return Plan(
        "surrender",
        (
            Step(Do.START_LEASE, "have the lease process run"),
            Step(Do.SHUT_FENCE, "shut the NFS port"),
            *_release_jobs(names),
            Step(Do.DEREGISTER, f"deregister {names.service}"),
            Step(Do.STOP_NFS, "stop the NFS server and check that no thread is left"),
            Step(Do.UNEXPORT, "remove the export"),
            Step(Do.UNBIND, f"unmount {names.bind}"),
            Step(Do.READ_ONLY_IF_THERE, f"make {names.live} read-only, if it is there"),
            Step(Do.SALVAGE_SNAPSHOT, "take the final snapshot, if there is anything new"),
            Step(Do.RELEASE, "give the lease up"),
            Step(Do.STOP_LEASE, "end the lease process"),
            Step(Do.RETIRE_TREE, f"put {names.live} aside"),
            Step(Do.FORGET, "be a standby"),
        ),
    )


def hand_over_as_it_is(names: Names, to: str | None) -> Plan:
    """Give up a role whose file system takes no writes: there is no final snapshot to wait for.

    What is left to do here follows by itself, when the disk lets it (`put_away`).
    """
    where = f" to {to}" if to else ""
    return Plan(
        "surrender",
        (
            TELL_HOOKS,
            *_release_jobs(names),
            Step(Do.DEREGISTER, f"deregister {names.service}"),
            Step(Do.SURRENDER, f"shut the NFS port and give the lease up{where}"),
            *((Step(Do.AWAIT_SUCCESSOR, f"wait until {to} serves"),) if to else ()),
        ),
    )


def put_away(names: Names) -> Plan:
    """The rest of an orderly demotion whose lease is given up."""
    return Plan(
        "put-away",
        (
            Step(Do.SHUT_FENCE, "shut the NFS port"),
            Step(Do.DEREGISTER, f"deregister {names.service}"),
            Step(Do.STOP_NFS, "stop the NFS server and check that no thread is left"),
            Step(Do.UNEXPORT, "remove the export"),
            Step(Do.STOP_LEASE, "end the lease process"),
            Step(Do.READ_ONLY, f"make {names.live} read-only"),
            Step(Do.UNBIND, f"unmount {names.bind}"),
            Step(Do.RETIRE_TREE, f"put {names.live} aside (the final snapshot is the same)"),
            Step(Do.FORGET, "be a standby"),
        ),
    )


def step_down(names: Names) -> Plan:
    """The lease is another's: stop at once, then keep what was written here."""
    return Plan(
        "step-down",
        (
            Step(Do.SHUT_FENCE, "shut the NFS port"),
            Step(Do.STOP_LEASE, "end the lease process"),
            Step(Do.DEREGISTER, f"deregister {names.service}"),
            Step(Do.STOP_NFS, "stop the NFS server and check that no thread is left"),
            Step(Do.UNEXPORT, "remove the export"),
            Step(Do.READ_ONLY, f"make {names.live} read-only"),
            Step(Do.UNBIND, f"unmount {names.bind}"),
            Step(Do.KEEP_DIVERGED, f"keep {names.live} aside as diverged"),
            Step(Do.FORGET, "be a standby"),
        ),
    )


def names_of(config: Config) -> Names:
    paths = config.paths
    return Names(
        str(paths.live),
        str(paths.bind),
        config.service,
        jobs=config.nomad.enabled,
    )


def plan_for(decision: Decision, config: Config) -> Plan | None:
    """The plan that carries a decision out; None: there is nothing to do."""
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
