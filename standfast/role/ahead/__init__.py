"""What a change of the role will ask of a node, asked before anything stops."""
