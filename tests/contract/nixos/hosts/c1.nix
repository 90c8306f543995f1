{
  imports = [
    ./common.nix
    ../../../../nixos/nfs-services-standby.nix
  ];
  networking.hostName = "c1";
  nfsServicesStandby.replicationKeys = [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f root@zippy-replication"
  ];
}
