# Stands in for NixOS: the options that nixos/*.nix defines or reads, with types that merge as there
# (nixos/lib/systemd-unit-options.nix of nixpkgs says how), and packages that are paths below
# `store`. What is here is what the module may count on; another option is an error.
{ lib, store }:
let
  inherit (lib) mkOption types;
  any = default: mkOption { inherit default; type = types.raw; };
  list = mkOption {
    type = types.listOf types.raw;
    default = [ ];
  };
  strings = mkOption {
    type = types.listOf types.str;
    default = [ ];
  };
  text = default: mkOption { inherit default; type = types.str; };
  flag = default: mkOption { inherit default; type = types.bool; };

  package = name: {
    inherit name;
    type = "derivation";
    outPath = "${store}/${name}";
  };

  # Lists are joined, in the order of mkBefore and mkAfter; of anything else there is one value.
  setting = lib.mkOptionType {
    name = "setting of a unit";
    merge =
      loc: defs:
      if lib.all (def: lib.isList def.value) defs then
        lib.concatMap (def: def.value) defs
      else
        lib.mergeEqualOption loc defs;
  };
  section = mkOption {
    type = types.attrsOf setting;
    default = { };
  };
  unit = {
    enable = flag true;
    overrideStrategy = text "asDropinIfExists";
    description = text "";
    wantedBy = strings;
    requiredBy = strings;
    wants = strings;
    after = strings;
    before = strings;
    unitConfig = section;
    restartTriggers = list;
  };
  units = more: mkOption {
    type = types.attrsOf (types.submodule { options = unit // more; });
    default = { };
  };
  mounts = more: mkOption {
    type = types.listOf (types.submodule { options = unit // more; });
    default = [ ];
  };
  needed = mkOption { type = types.str; };
in
rec {
  pkgs =
    lib.genAttrs [
      "bash"
      "btrfs-progs"
      "coreutils"
      "getent"
      "ipset"
      "iproute2"
      "iptables-legacy"
      "kmod"
      "nfs-utils"
      "nftables"
      "openssh"
      "util-linux"
      "zstd"
    ] package
    // {
      formats.toml = _: {
        type =
          let
            value = types.oneOf [
              types.bool
              types.int
              types.float
              types.str
              types.path
              (types.attrsOf value)
              (types.listOf value)
            ];
          in
          value;
        generate = name: value: package name // { inherit value; };
      };
      runCommand = name: environment: script: package name // { inherit environment script; };
      writeTextFile = file: package file.name // file;
    };
  # As systemd-escape --path does it with plain paths.
  utils.escapeSystemdPath =
    path: lib.replaceStrings [ "-" "/" ] [ "\\x2d" "-" ] (lib.removePrefix "/" path);

  options = {
    assertions = list;
    warnings = strings;
    boot.supportedFilesystems = strings;
    environment.etc = mkOption {
      type = types.attrsOf (types.submodule { options.source = any null; });
      default = { };
    };
    environment.systemPackages = list;
    fileSystems = mkOption {
      type = types.attrsOf types.raw;
      default = { };
    };
    networking = {
      hostName = needed;
      firewall.allowedTCPPorts = mkOption {
        type = types.listOf types.port;
        default = [ ];
      };
      nftables.enable = flag false;
      nftables.flushRuleset = flag false;
    };
    services = {
      consul.package = any (package "consul");
      nfs.server.enable = flag false;
      nfs.server.exports = text "";
      nomad.settings = any { };
      openssh.enable = flag false;
      openssh.settings.PermitRootLogin = text "prohibit-password";
    };
    systemd = {
      package = any (package "systemd");
      packages = list;
      services = units {
        path = list;
        restartIfChanged = flag true;
        stopIfChanged = flag true;
        serviceConfig = section;
      };
      timers = units { timerConfig = section; };
      sockets = units { socketConfig = section; };
      mounts = mounts {
        what = needed;
        where = needed;
        type = text "";
        options = text "";
        mountConfig = section;
      };
      automounts = mounts {
        where = needed;
        automountConfig = section;
      };
      tmpfiles.rules = strings;
    };
    users.users = mkOption {
      type = types.attrsOf (types.submodule { options.openssh.authorizedKeys.keys = strings; });
      default = { };
    };
  };

  # What NixOS itself says of an NFS server where one is enabled.
  config =
    { config, lib, ... }:
    {
      config = lib.mkIf config.services.nfs.server.enable {
        systemd.services.nfs-server = {
          wantedBy = [ "multi-user.target" ];
          serviceConfig.ExecStartPre = [ "${store}/nixos-pre-start" ];
        };
      };
    };
}
