# What nixos/package.nix says, on a stand-in of nixpkgs: plain values, for JSON. `src` is the list of
# files and folders that would be copied into the store.
{
  nixpkgsLib,
  store,
  library,
  interpreter,
}:
let
  lib = import nixpkgsLib;
  names = [
    "hatchling"
    "msgspec"
    "prometheus-client"
    "requests"
    "six"
    "tqdm"
    "urllib3"
    "waitress"
  ];
in
import ../../../nixos/package.nix {
  # Nix 2.8 lacks what lib.fileset is made of.
  lib = lib // {
    fileset = {
      fileFilter = keep: folder: assert keep { hasExt = _: false; }; folder;
      unions = map toString;
      toSource = { root, fileset }: map (lib.removePrefix "${toString root}/") fileset;
    };
  };
  fetchurl = file: file;
  coreutils = "${store}/coreutils";
  runtimeShell = "/bin/sh";
  python3 = {
    pkgs = lib.genAttrs names (name: name) // {
      buildPythonPackage = package: package;
      buildPythonApplication = package: package // { inherit library; };
      toPythonModule = package: package;
    };
    withPackages = packages: { interpreter = builtins.seq (packages null) interpreter; };
  };
  runCommand = name: environment: script: {
    inherit name script;
    inherit (environment.library) src postPatch dependencies;
    build-system = environment.library.build-system;
    pinned = environment.passthru;
    environment = builtins.removeAttrs environment [
      "library"
      "meta"
      "passthru"
    ];
  };
}
