# inputs.standfast.url = "git+https://HOST/standfast?dir=nixos"; it has no inputs of its own, and so
# no lock: the nixpkgs of the system that imports it is used.
{
  description = "Keeps exactly one NFS server alive on a Consul cluster";

  outputs = _: {
    nixosModules = {
      default = ./module.nix;
      nfs-services-server = ./nfs-services-server.nix;
      nfs-services-standby = ./nfs-services-standby.nix;
    };
    overlays.default = final: _: { standfast = final.callPackage ./package.nix { }; };
  };
}
