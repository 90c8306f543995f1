"""The container lab: nodes with real systemd, Consul, btrfs and NFS on one machine."""
