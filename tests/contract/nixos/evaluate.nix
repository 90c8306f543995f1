# What a host's configuration comes to on the stand-in of NixOS: plain values, for JSON.
{
  nixpkgsLib,
  store,
  host,
}:
let
  lib = import nixpkgsLib;
  stubs = import ./stubs.nix { inherit lib store; };
  evaluated = lib.evalModules {
    specialArgs = { inherit (stubs) pkgs utils; };
    modules = [
      { inherit (stubs) options; }
      stubs.config
      host
      # The stand-in's package is a directory.
      { config.services.standfast.package = lib.mkDefault { type = "derivation"; outPath = "${store}/standfast"; }; }
    ];
  };
  inherit (evaluated) config;
  path = what: toString what;
  # Before the names of units that NixOS makes of them.
  shown = kind: unit: {
    inherit kind;
    inherit (unit) wantedBy overrideStrategy;
    Unit =
      unit.unitConfig
      // lib.optionalAttrs (unit.description != "") { Description = unit.description; }
      // lib.optionalAttrs (unit.wants != [ ]) { Wants = unit.wants; }
      // lib.optionalAttrs (unit.after != [ ]) { After = unit.after; }
      // lib.optionalAttrs (unit.restartTriggers != [ ]) {
        X-Restart-Triggers = map path unit.restartTriggers;
      };
  };
  service =
    unit:
    shown "service" unit
    // {
      Service =
        # NixOS adds some of its own to each PATH.
        { Environment = "PATH=${lib.makeBinPath (unit.path ++ [ stubs.pkgs.coreutils config.systemd.package ])}"; }
        // lib.optionalAttrs (!unit.restartIfChanged) { X-RestartIfChanged = "false"; }
        // lib.optionalAttrs (!unit.stopIfChanged) { X-StopIfChanged = "false"; }
        // unit.serviceConfig;
    };
in
{
  failed = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
  inherit (config) warnings;
  ports = config.networking.firewall.allowedTCPPorts;
  keys = lib.attrByPath [ "root" "openssh" "authorizedKeys" "keys" ] [ ] config.users.users;
  tmpfiles = config.systemd.tmpfiles.rules;
  fileSystems = config.boot.supportedFilesystems;
  programs = map path config.environment.systemPackages;
  etc = lib.mapAttrs (_: file: {
    inherit (file.source) script;
    inherit (file.source.environment) volume;
    toml = file.source.environment.file.value;
  }) config.environment.etc;
  packages = lib.listToAttrs (
    map (file: lib.nameValuePair file.destination file.text) config.systemd.packages
  );
  units =
    lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.service" (service unit)) config.systemd.services
    // lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.timer" (shown "timer" unit // { Timer = unit.timerConfig; })) config.systemd.timers
    // lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.socket" (shown "socket" unit // { Socket = unit.socketConfig; })) config.systemd.sockets
    // lib.listToAttrs (
      map (
        unit:
        lib.nameValuePair "${stubs.utils.escapeSystemdPath unit.where}.mount" (
          shown "mount" unit
          // {
            Mount = {
              What = unit.what;
              Where = unit.where;
              Type = unit.type;
              Options = unit.options;
            }
            // unit.mountConfig;
          }
        )
      ) config.systemd.mounts
      ++ map (
        unit:
        lib.nameValuePair "${stubs.utils.escapeSystemdPath unit.where}.automount" (
          shown "automount" unit // { Automount = { Where = unit.where; } // unit.automountConfig; }
        )
      ) config.systemd.automounts
    );
  options = map (option: option.name) (
    lib.filter (option: lib.hasPrefix "services.standfast." option.name && !option.internal) (
      lib.optionAttrSetToDocList evaluated.options
    )
  );
}
