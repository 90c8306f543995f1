"""Commands that travel through Consul: what is asked of a node, who takes it, what came of it."""
