# Enough for Standfast on a storage node or a client, for a volume and service `data-services`
# with the default key prefix. With other names, change the first three rules. One service rule per
# volume. tests/contract/test_consul_secured.py takes each rule away on a real Consul.

service "data-services" {
  policy = "write"
}

key_prefix "standfast/" {
  policy = "write"
}

# What clients say of their mounts: the status page reads it, and a storage node is a client of the
# one that serves.
key_prefix "standfast-clients/" {
  policy = "write"
}

# To tell "nobody serves" from "this token sees nothing": the servers themselves must be visible.
service "consul" {
  policy = "read"
}

# Which nodes are alive; without it Consul leaves instances out of its answers without a word.
node_prefix "" {
  policy = "read"
}

# `consul watch` and the node's own processes ask their agent for its name.
agent_prefix "" {
  policy = "read"
}

# Only with `consul.transfer_leadership = true`. It is much: who has it may take servers out of Raft.
# operator = "write"
