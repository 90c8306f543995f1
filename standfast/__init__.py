"""Standfast keeps exactly one NFS server alive for a Consul + Nomad cluster."""

__version__ = "0.1.0"
