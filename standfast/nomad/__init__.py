"""Nomad follows the role: jobs that are constrained on the node's meta run on the primary."""
