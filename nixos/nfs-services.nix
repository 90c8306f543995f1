# The options of the old nfs-services-server.nix and nfs-services-standby.nix, on top of module.nix.
# Both files import this one, so that a host may keep what it sets when its import changes: which of
# the two it imports says nothing of who serves.
{ config, lib, ... }:
let
  cfg = config.services.standfast;
  inherit (config.nfsServicesServer) standbys;
  unknown = lib.filter (name: !cfg.nodes ? ${name}) standbys;
in
{
  imports = [ ./module.nix ];

  options = {
    nfsServicesServer.standbys = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      description = "Names that have to be in `services.standfast.nodes`; every storage node replicates to all others.";
    };
    nfsServicesStandby.replicationKeys = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      description = "As `services.standfast.replicationKeys`.";
    };
  };

  config = {
    services.standfast = {
      enable = lib.mkDefault true;
      openFirewall = lib.mkDefault true;
      replicationKeys = config.nfsServicesStandby.replicationKeys;
      volumes.data-services.settings = {
        # The runbook's hosts keep what has to survive a reboot below /persist, and root's
        # replication key has been there all the time.
        paths.state = lib.mkDefault "/persist/standfast";
        replication.ssh_key = lib.mkDefault "/persist/root/.ssh/btrfs-replication";
      };
    };
    assertions = [
      {
        assertion = cfg.enable -> cfg.storage;
        message = ''this host imports nfs-services-*.nix, and services.standfast.nodes lacks it: services.standfast.nodes.${cfg.node}.address = "...", in a file that all hosts import'';
      }
      {
        assertion = unknown == [ ];
        message = "nfsServicesServer.standbys names ${lib.concatStringsSep ", " unknown}, and services.standfast.nodes lacks it: services.standfast.nodes.${lib.head (unknown ++ [ "" ])}.address = \"...\", in a file that all hosts import";
      }
    ];
  };
}
