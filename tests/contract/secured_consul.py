"""A real Consul with ACLs, whose tokens a test makes itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.consul_clusters import ConsulCluster, real_cluster

MASTER = "3f1e0b7a-77c9-4d8c-8ad5-2e5f6ac4c7c1"


@dataclass(frozen=True)
class SecuredConsul:
    cluster: ConsulCluster

    def token(self, name: str, rules: str) -> str:
        """The secret of a new token with a policy of its own."""
        self._put("/v1/acl/policy", {"Name": name, "Rules": rules})
        made = self._put("/v1/acl/token", {"Policies": [{"Name": name}]})
        return str(made["SecretID"])

    def revoke(self, secret: str) -> None:
        listed = self.cluster.get_json("/v1/acl/tokens")
        for token in listed:
            accessor = token["AccessorID"]
            if self.cluster.get_json(f"/v1/acl/token/{accessor}")["SecretID"] == secret:
                self.cluster.ask("DELETE", f"/v1/acl/token/{accessor}")

    def _put(self, target: str, doc: object) -> Any:
        answer = self.cluster.ask("PUT", target, json.dumps(doc).encode())
        assert answer.status == 200, answer
        return json.loads(answer.body)


@contextmanager
def secured_consul(directory: Path) -> Iterator[SecuredConsul]:
    """A server that permits nothing without a token; `cluster` asks with one that may all."""
    acl = {
        "enabled": True,
        "default_policy": "deny",
        "token_ttl": "0s",
        "tokens": {"master": MASTER, "agent": MASTER},
    }
    with real_cluster(directory, {"acl": acl}, token=MASTER) as cluster:
        yield SecuredConsul(cluster)
