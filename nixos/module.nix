# NixOS module for a node of a Standfast cluster: docs/nixos.md. The role is no option: every storage
# node has the same, and which of them serves is decided at run time.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib)
    mkDefault
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    types
    ;
  cfg = config.services.standfast;
  toml = pkgs.formats.toml { };

  # What a volume's file says, or else Standfast's own default (docs/config.md).
  said = volume: path: default: lib.attrByPath path default volume.settings;
  live = volume: said volume [ "paths" "live" ] "/persist/services";
  bind = volume: said volume [ "paths" "bind" ] "/data/services";
  state = volume: said volume [ "paths" "state" ] "/var/lib/standfast";
  run = volume: said volume [ "paths" "run" ] "/run/standfast";
  port = volume: said volume [ "nfs" "port" ] 2049;
  volumes = lib.mapAttrsToList (name: volume: volume // { inherit name; }) cfg.volumes;
  of = value: lib.unique (map value volumes);
  isIn = directory: path: path == directory || lib.hasPrefix "${directory}/" path;

  # As ../standfast/clients/units.py has them, which a test compares.
  server =
    volume:
    let
      service = said volume [ "consul" "service" ] "";
      name = said volume [ "client" "name" ] "";
    in
    if name != "" then
      name
    else
      "${if service != "" then service else volume.name}.service.consul";
  mountOptions =
    volume:
    lib.concatStringsSep "," (
      lib.optionals (said volume [ "client" "nosuid" ] true) [
        "nosuid"
        "nodev"
      ]
      ++ [ (said volume [ "client" "options" ] "vers=4.2,hard") ]
      ++ lib.optional (port volume != 2049) "port=${toString (port volume)}"
      ++ [ "retry=0" ]
    );
  escaped = lib.replaceStrings [ "%" ] [ "%%" ];

  ipset = lib.any (volume: said volume [ "fence" "backend" ] "auto" == "ipset") volumes;
  # What NixOS has in every system beside these would get in their way there.
  programs = [
    cfg.package
    cfg.consulPackage
  ]
  ++ lib.optionals cfg.storage (
    [
      pkgs.btrfs-progs
      pkgs.nfs-utils
      pkgs.nftables
      pkgs.zstd
    ]
    ++ lib.optionals ipset [
      pkgs.ipset
      pkgs.iptables-legacy
    ]
  );
  tools = lib.unique (
    programs
    ++ [
      pkgs.bash
      pkgs.getent
      pkgs.iproute2
      pkgs.kmod
      pkgs.nfs-utils
      pkgs.openssh
      pkgs.util-linux
    ]
  );

  units = import ./units.nix {
    inherit lib;
    programs = "${cfg.package}/bin";
    foreign = {
      "/bin/false" = "${pkgs.coreutils}/bin/false";
      "/bin/systemctl" = "${config.systemd.package}/bin/systemctl";
      "/usr/sbin/exportfs" = "${pkgs.nfs-utils}/bin/exportfs";
    };
  };
  # A client has no other unit, and above all no guard of an NFS server of its own.
  files =
    if cfg.storage then
      units.names
    else
      [
        "standfast-resync.service"
        "standfast-resync.timer"
        "standfast-watch@.service"
      ];
  # Others read the volumes' files for each thing they do.
  readAtStart = [
    "standfast-agent@.service"
    "standfast-exporter.service"
    "standfast-lease@.service"
    "standfast-watch@.service"
  ];
  isOneshot = file: lib.hasInfix "\nType=oneshot\n" (units.text file);

  sources = lib.mapAttrs (
    name: volume:
    pkgs.runCommand "standfast-${name}.toml"
      {
        # With a file that is wrong a lease process that starts anew would stop the server: what is
        # wrong fails here, before anything is switched.
        file = toml.generate "${name}.toml" volume.settings;
        inherit (cfg) package;
        volume = name;
      }
      ''
        cp "$file" "./$volume.toml"
        "$package/bin/standfast" config check "./$volume.toml"
        cp "./$volume.toml" "$out"
      ''
  ) cfg.volumes;

  # PATH has to be in every unit. A process is restarted in one go, which the lease outlasts: stopped
  # first, it would be away for as long as the activation takes.
  service = more: { path = tools; stopIfChanged = false; } // more;
  instance =
    more:
    service (
      {
        overrideStrategy = "asDropin";
        wantedBy = [ "multi-user.target" ];
      }
      // more
    );
  ofVolumes =
    name: more:
    lib.mapAttrs' (volume: _: lib.nameValuePair "${name}@${volume}" more) cfg.volumes;

  # The file system of fileSystems that a path is on; null: the root's.
  mountOf =
    path:
    let
      points = lib.filter (point: point != "/" && isIn point path) (lib.attrNames config.fileSystems);
    in
    lib.foldl' (
      longest: point:
      if longest == null || lib.stringLength point > lib.stringLength longest then point else longest
    ) null points;
  # The units themselves say /persist.
  elsewhere = lib.filter (point: point != null && point != "/persist") (
    of (volume: mountOf (live volume))
  );
  mountUnit = point: "${utils.escapeSystemdPath point}.mount";
  written =
    lib.filter (path: !isIn "/var/lib/standfast" path) (of state)
    ++ lib.filter (path: !isIn "/run" path) (of run);

  keys = import ./keys.nix {
    inherit lib;
    inherit (cfg) cluster;
    nodes = lib.mapAttrs (_: node: node.address) cfg.nodes;
    self = cfg.node;
    volumes = lib.attrNames cfg.volumes;
  };
  nodeKeys = lib.mapAttrs (_: node: node.replicationKey) (
    lib.filterAttrs (_: node: node.replicationKey != null) cfg.nodes
  );

  nomadKeys = map (volume: said volume [ "nomad" "meta_key" ] "storage_role") (
    lib.filter (volume: volume.settings ? nomad) volumes
  );
  staticMeta = lib.intersectLists nomadKeys (
    lib.attrNames (config.services.nomad.settings.client.meta or { })
  );
in
{
  options.services.standfast = {
    enable = mkEnableOption "Standfast on this node";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package of Standfast.";
    };

    consulPackage = mkOption {
      type = types.package;
      default = config.services.consul.package;
      defaultText = lib.literalExpression "config.services.consul.package";
      description = "What has the `consul` command. Consul itself isn't configured here.";
    };

    cluster = mkOption {
      type = types.strMatching "[^\n]+";
      example = "alo";
      description = "Name of the cluster, the same on every node.";
    };

    node = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      description = "This node's name in Consul.";
    };

    nodes = mkOption {
      default = { };
      example = lib.literalExpression ''
        {
          zippy.address = "192.168.1.2";
          c1.address = "192.168.1.3";
        }
      '';
      description = "The storage nodes by their names in Consul, the same on every node, clients too.";
      type = types.attrsOf (
        types.submodule {
          options = {
            address = mkOption {
              type = types.str;
              description = "Address at which clients and other nodes reach it.";
            };
            replicationKey = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "ssh-ed25519 AAAA...";
              description = "Its public replication key, which may then send to every other storage node.";
            };
            settings = mkOption {
              inherit (toml) type;
              default = { };
              example = {
                priority = 200;
              };
              description = "Further keys of its table `[nodes.NAME]`.";
            };
          };
        }
      );
    };

    storage = mkOption {
      type = types.bool;
      default = cfg.nodes ? ${cfg.node};
      defaultText = lib.literalMD "whether `nodes` has this node";
      description = "Whether this node stores the volumes: it is primary or standby, by turns.";
    };

    client = mkOption {
      type = types.bool;
      default = true;
      description = "Whether this node mounts the volumes, wherever they are served.";
    };

    automount = mkOption {
      type = types.bool;
      default = true;
      description = "Mount at the first access instead of at boot, and let go after a minute without use.";
    };

    tokenFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/standfast-token";
      description = "File on this node, outside the Nix store, with Consul's ACL token.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Open the volumes' NFS ports in the firewall of a storage node.";
    };

    replicationKeys = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = ''
        Lines of authorized_keys as `standfast standby add` prints them, or keys alone whose comment
        names their node. Keys in `nodes` need none.
      '';
    };

    exporter = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Metrics and status page, on a storage node.";
      };
      listen = mkOption {
        type = types.str;
        default = "127.0.0.1:9756";
        description = "Where the exporter listens.";
      };
    };

    volumes = mkOption {
      default = { };
      description = "The volumes, by name.";
      type = types.attrsOf (
        types.submodule {
          options = {
            settings = mkOption {
              inherit (toml) type;
              default = { };
              example = {
                preferred = "zippy";
                nfs.clients = [ "192.168.1.21" ];
              };
              description = "The volume's file in /etc/standfast. It is checked when the system is built.";
            };
            weeklyVerify = mkOption {
              type = types.bool;
              default = false;
              description = "Compare all of it with what the standbys have, each Sunday night.";
            };
          };
          config.settings = {
            cluster = mkDefault cfg.cluster;
            node = mkIf (cfg.node != config.networking.hostName) (mkDefault cfg.node);
            nodes = lib.mapAttrs (
              _: node: { address = mkDefault node.address; } // node.settings
            ) cfg.nodes;
            consul = mkIf (cfg.tokenFile != null) { token_file = mkDefault cfg.tokenFile; };
          };
        }
      );
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        {
          assertion = cfg.volumes != { };
          message = "services.standfast.volumes is empty: name one, as in services.standfast.volumes.data-services = { }";
        }
        {
          assertion = cfg.nodes != { };
          message = ''
            services.standfast.nodes is empty. Every host needs all storage nodes with their addresses, so put them into a file that all hosts import:
              services.standfast.nodes = { zippy.address = "192.168.1.2"; c1.address = "192.168.1.3"; };'';
        }
        {
          assertion = cfg.storage == cfg.nodes ? ${cfg.node};
          message =
            if cfg.storage then
              ''services.standfast.storage is true, and services.standfast.nodes lacks this node: services.standfast.nodes.${cfg.node}.address = "..."''
            else
              "services.standfast.storage is false, and services.standfast.nodes has ${cfg.node}: the others would wait for a standby that isn't there";
        }
        {
          assertion =
            cfg.tokenFile == null
            || (lib.hasPrefix "/" cfg.tokenFile && !lib.hasPrefix builtins.storeDir cfg.tokenFile);
          message = "services.standfast.tokenFile is an absolute path outside the Nix store, where everybody can read: ${toString cfg.tokenFile}";
        }
      ];

      environment.etc = lib.mapAttrs' (
        name: source: lib.nameValuePair "standfast/${name}.toml" { inherit source; }
      ) sources;
      # For people, and for what root runs over ssh.
      environment.systemPackages = programs;
      # mount.nfs, where mount(8) looks for it.
      boot.supportedFilesystems = [ "nfs" ];

      systemd.packages = map (
        file:
        pkgs.writeTextFile {
          name = "standfast-unit";
          destination = "/lib/systemd/system/${file}";
          text = units.text file;
        }
      ) files;
      systemd.services = mkMerge [
        (lib.listToAttrs (
          map (
            file:
            lib.nameValuePair (lib.removeSuffix ".service" file) (
              # A cycle, or a look, goes on to its end.
              if isOneshot file then
                {
                  path = tools;
                  restartIfChanged = false;
                }
              else
                service {
                  restartTriggers = lib.optionals (lib.elem file readAtStart) (lib.attrValues sources);
                }
            )
          ) (lib.filter (lib.hasSuffix ".service") files)
        ))
        (ofVolumes "standfast-watch" (instance { }))
      ];
      systemd.timers.standfast-resync.wantedBy = [ "timers.target" ];
    }

    (mkIf cfg.client {
      # As `standfast client units` makes them, which can't write to NixOS' /etc/systemd/system.
      systemd.mounts = map (volume: {
        description = "Standfast: ${bind volume}, from whoever serves it";
        after = [
          "network-online.target"
          "consul.service"
        ];
        wants = [ "network-online.target" ];
        wantedBy = lib.optional (!cfg.automount) "remote-fs.target";
        unitConfig.StartLimitIntervalSec = 0;
        type = "nfs4";
        what = "${server volume}:${escaped (live volume)}";
        where = escaped (bind volume);
        options = mountOptions volume;
        mountConfig.TimeoutSec = "30s";
      }) volumes;
      systemd.automounts = mkIf cfg.automount (
        map (volume: {
          description = "Standfast: ${bind volume}, mounted at the first access";
          where = escaped (bind volume);
          automountConfig.TimeoutIdleSec = "60s";
          wantedBy = [ "remote-fs.target" ];
        }) volumes
      );
    })

    (mkIf cfg.storage {
      assertions = [
        {
          assertion = lib.all (volume: said volume [ "nfs" "server" ] "kernel" == "kernel") volumes;
          message = "services.standfast: this module knows the kernel's NFS server alone, not nfs.server = \"ganesha\"";
        }
        {
          assertion =
            !lib.any (volume: lib.hasInfix (live volume) config.services.nfs.server.exports) volumes;
          message = "services.nfs.server.exports names ${lib.concatStringsSep ", " (of live)}: take it out, only Standfast may export it";
        }
        {
          assertion = keys.unknown cfg.replicationKeys == [ ];
          message = ''
            services.standfast.replicationKeys (nfsServicesStandby.replicationKeys) has keys that don't say whose they are: ${lib.concatStringsSep ", " (keys.unknown cfg.replicationKeys)}
            Put each into services.standfast.nodes.NAME.replicationKey, or the whole line there that `standfast standby add` prints on its node.'';
        }
        {
          assertion = keys.malformed nodeKeys == [ ];
          message = ''services.standfast.nodes.NAME.replicationKey is one public key, as "ssh-ed25519 AAAA...", without options: ${lib.concatStringsSep ", " (keys.malformed nodeKeys)}'';
        }
        {
          assertion = staticMeta == [ ];
          message = "services.nomad.settings.client.meta sets ${lib.concatStringsSep ", " staticMeta}: take it out, Standfast sets it while this node is primary";
        }
        {
          assertion =
            config.services.openssh.enable
            -> (config.services.openssh.settings.PermitRootLogin or "") != "no";
          message = "services.openssh.settings.PermitRootLogin is \"no\", so that no snapshot can be received: \"forced-commands-only\" lets in nothing but what a key's line names";
        }
      ];
      warnings =
        lib.optional
          (config.networking.nftables.enable && config.networking.nftables.flushRuleset or false)
          "networking.nftables.flushRuleset takes Standfast's fence away at each reload, until the next heartbeat: set it to false";

      # Started by the agent alone, and asked by the guard whoever starts it. A deployment doesn't
      # restart it: what changed counts from its next start on.
      services.nfs.server.enable = true;
      systemd.services = mkMerge [
        {
          nfs-server = {
            wantedBy = lib.mkForce [ ];
            restartIfChanged = false;
            path = tools;
            # Not as the drop-in that it is elsewhere: NixOS' own would come before it.
            serviceConfig.ExecStartPre = lib.mkBefore units.guard;
          };
          # The new agent looks for the fence's rules as the new lease process makes them.
          "standfast-agent@".after = [ "standfast-lease@%i.service" ];
        }
        (ofVolumes "standfast-agent" (instance { }))
        (mkIf cfg.exporter.enable {
          standfast-exporter = {
            wantedBy = [ "multi-user.target" ];
            serviceConfig = mkIf (cfg.exporter.listen != "127.0.0.1:9756") {
              ExecStart = [
                ""
                "${cfg.package}/bin/standfast-exporter --listen ${cfg.exporter.listen}"
              ];
            };
          };
        })
        (lib.mapAttrs' (
          name: volume:
          lib.nameValuePair "standfast-nomad@${name}" (
            mkIf (volume.settings ? nomad) (instance {
              wantedBy = [ "nomad.service" ];
              restartIfChanged = false;
            })
          )
        ) cfg.volumes)
        # Paths that the units can't know.
        (mkIf (elsewhere != [ ]) {
          "standfast-agent@" = {
            wants = map mountUnit elsewhere;
            after = map mountUnit elsewhere;
          };
          "standfast-replicate@".unitConfig.RequiresMountsFor = elsewhere;
          "standfast-verify@".unitConfig.RequiresMountsFor = elsewhere;
        })
        (mkMerge (
          map (
            volume:
            mkIf (run volume != "/run/standfast") {
              "standfast-ended@${volume.name}" = {
                overrideStrategy = "asDropin";
                path = tools;
                unitConfig.ConditionPathExists = [
                  ""
                  "!${run volume}/%i/nothing-held"
                ];
              };
            }
          ) volumes
        ))
        (mkIf (written != [ ]) {
          "standfast-lease@".serviceConfig.ReadWritePaths = map (path: "-${path}") written;
          "standfast-lost@".serviceConfig.ReadWritePaths = map (path: "-${path}") written;
        })
      ];
      systemd.timers = lib.mapAttrs' (
        name: volume:
        lib.nameValuePair "standfast-verify@${name}" (
          mkIf volume.weeklyVerify {
            overrideStrategy = "asDropin";
            wantedBy = [ "timers.target" ];
          }
        )
      ) cfg.volumes;
      systemd.sockets.standfast-receive.wantedBy = [ "sockets.target" ];
      systemd.tmpfiles.rules = [
        "d /etc/exports.d 0755 root root -"
        "d /etc/nfs.conf.d 0755 root root -"
        "d /var/lib/nfs 0755 root root -"
      ]
      ++ map (path: "d ${path} 0750 root root -") (
        lib.filter (path: !isIn "/var/lib/standfast" path) (of state)
      );

      services.openssh.enable = mkDefault true;
      users.users.root.openssh.authorizedKeys.keys = keys.lines cfg.replicationKeys nodeKeys;
      networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall (of port);
    })
  ]);
}
