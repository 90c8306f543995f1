# Enough for a node that only mounts, for a volume and service `data-services` with the default key
# prefix: it can change nothing but what clients say of their mounts.
# tests/contract/test_consul_secured.py proves it on a real Consul.

service "data-services" {
  policy = "read"
}

key_prefix "standfast/" {
  policy = "read"
}

key_prefix "standfast/data-services/clients/" {
  policy = "write"
}

service "consul" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

# `consul watch` asks its agent for its name.
agent_prefix "" {
  policy = "read"
}
