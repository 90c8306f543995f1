"""What the demo has instead of btrfs, systemd, the NFS server, the bind mount and the fence."""
