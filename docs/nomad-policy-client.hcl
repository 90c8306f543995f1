# Enough for a node that only mounts, and whose allocations are restarted or signalled after a remount:
#   nomad acl policy apply -description standfast-client standfast-client nomad-policy-client.hcl
#   nomad acl token create -name standfast-client -policy standfast-client
# It can make no node eligible or ineligible and set no meta. tests/contract/ports/test_nomad.py proves
# both on a real Nomad.

# Where the node's host volumes are, and which allocations it has.
node {
  policy = "read"
}

# Which node the own agent is.
agent {
  policy = "read"
}

# What an allocation mounts; restarting, signalling and stopping it. Naming namespaces instead of "*"
# leaves the others alone: give a block for each.
namespace "*" {
  capabilities = ["read-job", "alloc-lifecycle"]
}
