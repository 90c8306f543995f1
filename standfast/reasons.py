"""Stable reason codes: logged, shown by the CLI, exported as metric labels, asserted by tests.

A code never changes its meaning; docs/reason-codes.md explains each.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    # Nothing to do
    SERVING = "serving"
    STANDING_BY = "standing-by"
    PRIMARY_ALIVE = "primary-alive"
    # Waiting: becomes possible by itself
    WAITING_FOR_LEASE_END = "waiting-for-lease-end"
    WAITING_FOR_EVIDENCE = "waiting-for-evidence"
    WAITING_FOR_BETTER_CANDIDATE = "waiting-for-better-candidate"
    LEASE_LAPSED = "lease-lapsed"
    # Acting
    TAKEOVER = "takeover"
    CLEAN_HANDOVER = "clean-handover"
    OPERATOR = "operator"
    RESUME_PROMOTION = "resume-promotion"
    RESUME_DEMOTION = "resume-demotion"
    LEASE_LOST = "lease-lost"
    RETURNED = "returned"
    FIRST_PRIMARY = "first-primary"
    # Blocked: somebody has to do something
    MANUAL_MODE = "manual-mode"
    PAUSED = "paused"
    DEMOTED = "demoted"
    NOT_A_CANDIDATE = "not-a-candidate"
    MIN_REIGN = "min-reign"
    NO_PUBLISHED_SNAPSHOT = "no-published-snapshot"
    TOO_OLD = "too-old"
    STALE_LINEAGE = "stale-lineage"
    EPOCH_WENT_BACK = "epoch-went-back"
    EPOCH_MISSING = "epoch-missing"
    LEADER_MISSING = "leader-missing"
    FOREIGN_VALUE = "foreign-value"
    CONSUL_UNREACHABLE = "consul-unreachable"
    CONSUL_TIMEOUT = "consul-timeout"
    CONSUL_NO_QUORUM = "consul-no-quorum"
    CONSUL_DENIED = "consul-denied"
    CONSUL_GARBLED = "consul-garbled"
    CONSUL_BLIND_TOKEN = "consul-blind-token"  # noqa: S105
    NOT_INITIALISED = "not-initialised"
    # Guard
    OTHER_SERVER_ACTIVE = "other-server-active"
    LEASE_NOT_HELD = "lease-not-held"
    LEASE_TOO_SHORT = "lease-too-short"
    WRONG_EPOCH = "wrong-epoch"
    FENCE_NOT_ARMED = "fence-not-armed"
    VOLUME_MISSING = "volume-missing"
    VOLUME_READ_ONLY = "volume-read-only"
    VOLUME_QUARANTINED = "volume-quarantined"
    NOT_PROMOTED_HERE = "not-promoted-here"
    CONFIG_INVALID = "config-invalid"
    DEADLINE = "deadline"
    UNEXPECTED = "unexpected"
    # Commands
    ALREADY_PRIMARY = "already-primary"
    NOT_PRIMARY = "not-primary"
    UNKNOWN_NODE = "unknown-node"
    NO_STANDBY_READY = "no-standby-ready"
    REPLICATION_FAILED = "replication-failed"
    BAD_KEY = "bad-key"
    STANDBY_NOT_READY = "standby-not-ready"
    STILL_CONFIGURED = "still-configured"
    CONTENT_DIFFERS = "content-differs"
    BUSY = "busy"
    # Receiving
    NOT_THE_LEASE_HOLDER = "not-the-lease-holder"
    UNKNOWN_PARENT = "unknown-parent"
    UNKNOWN_SNAPSHOT = "unknown-snapshot"
    NEEDS_FULL = "needs-full"
    BAD_NAME = "bad-name"
    NO_SPACE = "no-space"
    PROTOCOL = "protocol"
    INCOMPLETE = "incomplete"
    # Clients
    MOUNT_CURRENT = "mount-current"
    NOT_A_CLIENT = "not-a-client"
    AUTOMOUNT_IDLE = "automount-idle"
    ROLE_IS_HERE = "role-is-here"
    NOT_MOUNTED = "not-mounted"
    MOUNT_UNKNOWN = "mount-unknown"
    SERVER_MOVED = "server-moved"
    TREE_REPLACED = "tree-replaced"
    STALE_MOUNT = "stale-mount"
    BIND_COVERED = "bind-covered"
    BINDS_LEFT = "binds-left"
    NO_SERVER = "no-server"
    SERVER_AWAY = "server-away"
    MOUNT_FAILS = "mount-fails"
    PATH_TAKEN = "path-taken"
    OLDER_EPOCH = "older-epoch"
