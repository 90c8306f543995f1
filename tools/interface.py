"""What the documents say of every command: exit status and environment. Both are interfaces."""

from __future__ import annotations

EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "success"),
    (1, "refused: the message begins with a reason code (docs/reason-codes.md)"),
    (2, "the command line or the configuration is wrong"),
    (3, "something is unreachable or needs root, or a deadline has passed"),
    (4, "a step failed: the message names the step, and the command that continues"),
    (130, "interrupted"),
)

ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("STANDFAST_CONFIG_DIR", "directory of the configuration files, instead of /etc/standfast"),
    ("STANDFAST_DEBUG", "1: show the traceback of an unexpected error"),
    ("STANDFAST_JOURNAL", "socket of the journal, for events; empty: no events (docs/events.md)"),
    (
        "CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_CACERT, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY",
        "used for values that [consul] of the configuration leaves empty; of all children, only "
        "`consul watch` and its handlers inherit them",
    ),
    (
        "NOMAD_ADDR, NOMAD_TOKEN, NOMAD_REGION, NOMAD_CACERT, NOMAD_CLIENT_CERT, NOMAD_CLIENT_KEY, "
        "NOMAD_TLS_SERVER_NAME, NOMAD_SKIP_VERIFY",
        "the same for [nomad], and what it has no key for",
    ),
)
