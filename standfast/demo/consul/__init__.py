"""An embedded Consul-compatible server: a whole cluster in one process."""
