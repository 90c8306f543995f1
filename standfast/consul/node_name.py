"""What Consul calls this node, against what the configuration calls it. Pure.

Everything about a node goes by its name: whose entry in the catalogue it is, whether gossip takes
it for alive. Consul's own comparison ignores case in places; ours never does.
"""

from __future__ import annotations


def misnamed(node: str, named: str | None) -> str | None:
    """Says what is wrong where Consul's agent here (`named`) isn't called as the configuration
    calls this node (`node`); None: nothing, or the agent's name isn't known."""
    if named in (None, node):
        return None
    return (
        f"the Consul agent here is called {named}, and the configuration calls this node {node}: "
        f"its own server would pass for another node's, and it would count as dead; set "
        f"`node_name` of the Consul agent to {node} and restart that"
    )
