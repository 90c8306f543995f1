"""What the labs have in common, whatever their nodes are made of."""
