# Enough for Standfast on a storage node, and not more than it uses; nomad-policy-client.hcl is for one
# that is only a client:
#   nomad acl policy apply -description standfast standfast nomad-policy.hcl
#   nomad acl token create -name standfast -policy standfast
# tests/contract/ports/test_nomad.py proves both on a real Nomad.

# The node's meta and its eligibility, which is what a dead primary is kept out with.
node {
  policy = "write"
}

# Which node the own agent is, and how long a dead node may go unnoticed.
agent {
  policy = "read"
}

# Which jobs follow the role, stopping and restarting their allocations. Naming namespaces instead
# of "*" leaves the others alone: give a block for each.
namespace "*" {
  capabilities = ["read-job", "list-jobs", "alloc-lifecycle"]
}
