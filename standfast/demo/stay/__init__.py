"""`standfast demo --stay`: the cluster stays up, with a prompt."""
