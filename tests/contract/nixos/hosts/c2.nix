{
  imports = [ ./common.nix ];
  networking.hostName = "c2";
}
