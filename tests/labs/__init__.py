"""Clusters of machines with real parts."""
