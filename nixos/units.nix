# The unit files of ../systemd with absolute paths, as NixOS has no /usr/local/bin: pure, the text
# alone. What else NixOS needs (PATH, what is enabled) is in drop-ins of module.nix. `programs` is
# the directory of Standfast's own programs; `foreign` has, by its path on Debian, where a program
# of the distribution is.
{
  lib,
  programs,
  foreign,
}:
let
  inherit (builtins)
    attrNames
    elemAt
    filter
    listToAttrs
    match
    readDir
    readFile
    ;
  folder = ../systemd;
  # Of the wheel: what is installed is what may be named without a path.
  own =
    (builtins.fromTOML (readFile ../pyproject.toml)).tool.hatch.build.targets.wheel.shared-scripts;
  ours = lib.attrValues own;

  # A unit that names another program has to be thought about here, so it is an error.
  placed =
    where: program:
    if lib.elem program ours then
      "${programs}/${program}"
    else
      foreign.${program} or (throw "nixos/units.nix: ${where} runs ${program}, which has no place here");

  line =
    where: text:
    let
      parts = match "(Exec[A-Za-z]*=[-+!:@]*)([^ ]+)(.*)" text;
    in
    if parts == null then
      text
    else
      "${elemAt parts 0}${placed where (elemAt parts 1)}${elemAt parts 2}";

  lines = file: map (line file) (lib.splitString "\n" (readFile (folder + "/${file}")));
  isUnit = name: match ".*\\.(service|socket|timer)" name != null;
in
rec {
  # Their names, each with its ending.
  names = filter isUnit (attrNames (readDir folder));

  text = file: lib.concatStringsSep "\n" (lines file);

  # file name -> text, of these.
  texts = files: listToAttrs (map (name: lib.nameValuePair name (text name)) files);

  # What the drop-in of nfs-server.service says, as the list that a NixOS option takes: the empty
  # first value takes away what the unit itself runs before its start.
  guard =
    let
      values = map (match "ExecStartPre=(.*)") (lines "nfs-server.service.d/standfast.conf");
    in
    map (value: elemAt value 0) (filter (value: value != null) values);
}
