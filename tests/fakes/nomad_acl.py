"""The stand-in's ACLs: as much of Nomad's as policies for Standfast can use."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field

from tests.fakes.nomad_objects import Refusal

_BLOCK = re.compile(r'(node|agent|namespace)\s*(?:"([^"]*)")?\s*\{([^}]*)\}')


@dataclass(frozen=True)
class Policy:
    node: str = ""
    agent: str = ""
    namespaces: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, rules: str) -> Policy:
        """The blocks `node`, `agent` and `namespace`; others are no error and give nothing."""
        levels = {"node": "", "agent": ""}
        namespaces: dict[str, frozenset[str]] = {}
        for kind, name, body in _BLOCK.findall(re.sub(r"#.*", "", rules)):
            if kind == "namespace":
                listed = re.search(r"capabilities\s*=\s*\[([^\]]*)\]", body)
                namespaces[name] = frozenset(re.findall(r'"([^"]+)"', listed[1] if listed else ""))
            else:
                level = re.search(r'policy\s*=\s*"(\w+)"', body)
                levels[kind] = level[1] if level else ""
        return cls(levels["node"], levels["agent"], namespaces)

    def may(self, capability: str, namespace: str) -> bool:
        names = [namespace, "*"]
        return any(capability in self.namespaces.get(name, ()) for name in names)


class Acl:
    """Tokens by their secrets. An empty management secret: everybody may do everything."""

    def __init__(self, management: str) -> None:
        self.management = management
        self.policies: dict[str, Policy] = {}
        self.tokens: dict[str, list[str]] = {}

    def make_token(self, policies: list[str]) -> str:
        secret = str(uuid.uuid4())
        self.tokens[secret] = policies
        return secret

    def all(self, token: str) -> bool:
        return not self.management or token == self.management

    def must(self, token: str, kind: str, *levels: str) -> None:
        """One of the levels of `node` or `agent`; 403 says the same for every reason."""
        if not self.all(token) and not any(
            getattr(policy, kind) in levels for policy in self._policies(token)
        ):
            raise Refusal(403, "Permission denied")

    def may(self, token: str, capability: str, namespace: str) -> bool:
        return self.all(token) or any(
            policy.may(capability, namespace) for policy in self._policies(token)
        )

    def must_may(self, token: str, capability: str, namespace: str) -> None:
        if not self.may(token, capability, namespace):
            raise Refusal(403, "Permission denied")

    def must_manage(self, token: str) -> None:
        if not self.all(token):
            raise Refusal(403, "Permission denied")

    def _policies(self, token: str) -> list[Policy]:
        return [self.policies[name] for name in self.tokens.get(token, ())]
