# What every host of the cluster imports: new, the one file that is added to the runbook's.
{
  imports = [ ../../../../nixos/module.nix ];

  services.standfast = {
    enable = true;
    cluster = "alo";
    nodes = {
      zippy.address = "192.168.1.2";
      c1.address = "192.168.1.3";
    };
    tokenFile = "/run/secrets/standfast-token";
    volumes.data-services.settings = {
      preferred = "zippy";
      consul.addresses = [
        "127.0.0.1:8500"
        "192.168.1.3:8500"
      ];
      nfs.clients = [
        "192.168.1.2"
        "192.168.1.3"
        "192.168.1.4"
        "192.168.1.5"
      ];
      nomad = { };
    };
  };
  fileSystems."/persist" = { };
}
