# Enough for a node that only mounts, for a volume and service `data-services` with the default key
# prefix: it can change nothing but what clients say of their mounts. With other names, change the
# first three rules. tests/contract/test_consul_secured.py takes each rule away on a real Consul.

# Where the server is.
service "data-services" {
  policy = "read"
}

# Who holds the current epoch: no entry of the service is believed without it.
key_prefix "standfast/data-services/" {
  policy = "read"
}

# What clients say of their mounts lies beside the volume's keys: whatever is written here, nothing
# that a storage node reads gets longer.
key_prefix "standfast-clients/data-services/" {
  policy = "write"
}

# Which nodes are alive; without it Consul leaves instances out of its answers without a word.
node_prefix "" {
  policy = "read"
}

# `consul watch` asks its agent for its name.
agent_prefix "" {
  policy = "read"
}
