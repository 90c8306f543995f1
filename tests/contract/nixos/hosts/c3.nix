{
  imports = [ ./common.nix ];
  networking.hostName = "c3";
}
