# Lines of authorized_keys for the other storage nodes' replication keys: pure. Each lets its key
# run `standfast receive` as the one node whose key it is, and nothing else
# (../standfast/replication/authorized.py makes the same).
{
  lib,
  cluster,
  # name -> address
  nodes,
  # This node's name; its own key needs no line.
  self,
  volumes,
}:
let
  kinds = [
    "ssh-ed25519"
    "ecdsa-sha2-nistp256"
    "ecdsa-sha2-nistp384"
    "ecdsa-sha2-nistp521"
    "ssh-rsa"
  ];
  words =
    text:
    lib.filter (word: word != "") (lib.splitString " " (lib.replaceStrings [ "\n" ] [ " " ] text));
  isKey = text: words text != [ ] && lib.elem (lib.head (words text)) kinds;
  comment = key: lib.concatStringsSep " " (lib.drop 2 (words key));

  # As `standfast standby add` makes them, and as the runbook has them (root@zippy-replication).
  comments = node: [
    "standfast-${cluster}-${node}"
    "root@${node}-replication"
    "root@${node}"
    node
  ];
  nodeOf =
    key: lib.findFirst (node: lib.elem (comment key) (comments node)) null (lib.attrNames nodes);

  # sshd compares addresses with from=; a host name there would keep the node out.
  isAddress = text: builtins.match "[0-9.]+|[0-9a-fA-F.]*:[0-9a-fA-F:.]*" text != null;
  # A key of several volumes has one line, without their names.
  volume = if lib.length volumes == 1 then " ${lib.head volumes}" else "";

  line =
    node: key:
    lib.concatStringsSep "," (
      [ "restrict" ]
      ++ lib.optional (isAddress nodes.${node}) "from=\"${nodes.${node}}\""
      # By its path: what root's shell finds over ssh is decided elsewhere.
      ++ [ "command=\"/run/current-system/sw/bin/standfast receive${volume} --from ${node}\"" ]
    )
    + " ${lib.concatStringsSep " " (words key)}";

  # Two lines for one key would let it in by the wider one of them.
  once = lib.foldl' (
    lines: one: if lib.any (other: other.blob == one.blob) lines then lines else lines ++ [ one ]
  ) [ ];
in
rec {
  # Keys alone of which nothing says whose they are.
  unknown = keys: lib.filter (key: isKey key && nodeOf key == null) keys;

  # Nodes whose key is none.
  malformed = byNode: lib.attrNames (lib.filterAttrs (_: key: !isKey key) byNode);

  # `keys`: whole lines, which stay as they are, or keys with such a comment. `byNode`: node -> key.
  lines =
    keys: byNode:
    let
      whole = lib.filter (key: !isKey key) keys;
      named = lib.mapAttrsToList (node: key: { inherit node key; }) byNode;
      told = map (key: {
        node = nodeOf key;
        inherit key;
      }) (lib.filter (key: isKey key && nodeOf key != null) keys);
      isThere = key: lib.any (line: lib.elem (lib.elemAt (words key) 1) (words line)) whole;
      others = lib.filter (one: one.node != self && !isThere one.key) (named ++ told);
    in
    lib.unique whole
    ++ map (one: one.text) (
      once (
        map (one: {
          blob = lib.elemAt (words one.key) 1;
          text = line one.node one.key;
        }) others
      )
    );
}
