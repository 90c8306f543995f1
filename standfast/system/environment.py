"""What the environment says of Consul and Nomad: read once when a program starts, and taken out.

Invariant: afterwards neither a library nor a child inherits it. python-consul2 would send the
variable's token instead of ours, and fail where it doesn't understand the address. Who needs them
is given them. This hides nothing from root, who can read /proc/PID/environ.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# What says where Consul and Nomad are and how to authenticate, by their commands' documentation.
_NAMES = frozenset(
    f"{program}_{name}"
    for program, names in (
        (
            "CONSUL",
            "HTTP_ADDR HTTP_TOKEN HTTP_TOKEN_FILE HTTP_AUTH HTTP_SSL HTTP_SSL_VERIFY CACERT CAPATH "
            "CLIENT_CERT CLIENT_KEY TLS_SERVER_NAME NAMESPACE PARTITION",
        ),
        (
            "NOMAD",
            "ADDR TOKEN REGION NAMESPACE CACERT CAPATH CLIENT_CERT CLIENT_KEY TLS_SERVER_NAME "
            "SKIP_VERIFY HTTP_AUTH",
        ),
    )
    for name in names.split(" ")
)
TAKEN: dict[str, str] = {}
"""What `take` found, by the variables' names; empty before."""


def take(environ: MutableMapping[str, str] = os.environ) -> None:
    """Takes the variables out of the environment, into TAKEN."""
    for name in _NAMES.intersection(environ):
        TAKEN[name] = environ.pop(name)
