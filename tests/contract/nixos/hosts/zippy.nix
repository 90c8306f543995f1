{
  imports = [
    ./common.nix
    ../../../../nixos/nfs-services-server.nix
  ];
  networking.hostName = "zippy";
  nfsServicesServer.standbys = [ "c1" ];
}
