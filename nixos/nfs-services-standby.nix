# In place of the runbook's file of this name. The role is no configuration: this is what
# nfs-services-server.nix is, and swapping the two changes nothing.
{
  imports = [ ./nfs-services.nix ];
}
