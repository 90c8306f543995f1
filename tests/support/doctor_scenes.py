"""What doctor finds, and the real causes that are planted for it in the container lab.

Here, as the lab's test plants them and a unit test asks whether a check of doctor's is without one.
The shell texts have the names of the nodes' parts in PRIMARY, STANDBY and THIRD, and ADDRESS, the
node's own; beside them VOLUME, AGENT, LEASE, CONFIG, NOMAD, OWN_NOMAD and PYTHON.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.null_server import BESIDE_THE_FENCE, SOURCE

PRIMARY, STANDBY, THIRD = "PRIMARY", "STANDBY", "THIRD"


@dataclass(frozen=True, slots=True)
class Sight:
    """A finding that has to be bad while the cause is there."""

    group: str
    check: str
    words: tuple[str, ...]
    """What evidence and fix say of it; a part's name in braces is the node's."""
    asked: str = STANDBY
    """Whose doctor."""
    lingers: bool = False
    """It outlasts its scene: what ends it is time, or the next scene."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A cause, by the part of the node on which it is planted and undone."""

    do: Mapping[str, str]
    undo: Mapping[str, str]
    sights: tuple[Sight, ...]


KEYS = "/root/.ssh/authorized_keys"
SNAPSHOTS = "/persist/services-standby"
NO_CONSUL = (
    "nft 'add table inet cut; add chain inet cut out { type filter hook output priority -300; };"
    " add rule inet cut out tcp dport 8500 reject with tcp reset'"
)
OF_BTRFS = """$PYTHON -c '
import sys; from pathlib import Path; from standfast.btrfs import info
info.mark_received(Path(sys.argv[1]), "11111111-2222-4333-8444-555555555555")' /persist/services"""
NO_LONGER_RECEIVED = (
    "btrfs property set -t subvol /persist/services ro true;"
    " btrfs property set -f -t subvol /persist/services ro false"
)
DAMAGE = f"""cd {SNAPSHOTS}
$PYTHON -c '
import subprocess; from pathlib import Path; from standfast.btrfs import info
copy = sorted(Path(".").glob("services@*"))[-1].absolute()
aside, known = copy.with_name("aside"), info.read(copy)
copy.rename(aside)
subprocess.run(["btrfs", "subvolume", "snapshot", aside, copy], check=True)
(copy / "damaged").write_text("not what was sent")
info.stand_in(copy, known.content_id, aside)
subprocess.run(["btrfs", "subvolume", "delete", aside], check=True)'
"""
# A cycle of the timer's may be at work.
FULL_AGAIN = (
    "until standfast replicate $STANDBY --full; do sleep 0.5; done;"
    " standfast verify $STANDBY --full"
)
FLUSHER = "systemd-run -q --unit=flusher sh -c 'while :; do nft flush ruleset; sleep 0.02; done'"

SCENES: Mapping[str, Scene] = {
    # The first two leave restarts behind, which count for three minutes.
    "a unit that ends soon after each start": Scene(
        {
            THIRD: "d=/run/systemd/system/standfast-watch@$VOLUME.service.d; mkdir -p $d;"
            " printf '[Service]\\nExecStart=\\nExecStart=/bin/true\\n' >$d/ends.conf;"
            " systemctl daemon-reload; systemctl restart standfast-watch@$VOLUME"
        },
        {
            THIRD: "rm -r /run/systemd/system/standfast-watch@$VOLUME.service.d;"
            " systemctl daemon-reload; systemctl restart standfast-watch@$VOLUME"
        },
        (
            Sight(
                "node",
                "restarts",
                ("standfast-watch@{VOLUME}.service (", "journalctl -u standfast-watch@{VOLUME}"),
                THIRD,
                lingers=True,
            ),
        ),
    ),
    "no way to Consul": Scene(
        {STANDBY: NO_CONSUL},
        {STANDBY: "nft delete table inet cut"},
        (
            Sight("service", "serving", ("not known", "bring Consul back")),
            Sight("takeover", "consul", ("8500",)),
            Sight("node", "name", ("not compared", "8500")),
        ),
    ),
    "units that failed, that start too early, a hook that can't run": Scene(
        {
            STANDBY: "systemctl start $LEASE || true;"
            " sed -i.good /^After=persist.mount/d /etc/systemd/system/standfast-agent@.service;"
            " systemctl daemon-reload;"
            " mkdir -p /etc/standfast/hooks.d/post-promote;"
            " touch /etc/standfast/hooks.d/post-promote/10-mail"
        },
        {
            STANDBY: "rm -r /etc/standfast/hooks.d; systemctl reset-failed $LEASE;"
            " cd /etc/systemd/system; mv standfast-agent@.service.good standfast-agent@.service;"
            " systemctl daemon-reload"
        },
        (
            Sight("node", "units", ("failed: standfast-lease@{VOLUME}.service", "journalctl -u")),
            Sight("node", "order", ("doesn't wait for persist.mount", "After=persist.mount")),
            Sight("node", "hooks", ("post-promote/10-mail is not executable",)),
        ),
    ),
    "another volume's file that can't be read": Scene(
        {STANDBY: "echo 'cluster =' >/etc/standfast/media.toml"},
        {STANDBY: "rm /etc/standfast/media.toml"},
        (Sight("takeover", "volumes", ("media.toml", "config check"), PRIMARY),),
    ),
    "an agent that is down": Scene(
        {STANDBY: "systemctl stop $AGENT"},
        {STANDBY: "systemctl start $AGENT"},
        (
            Sight("service", "agent", ("none answers", "systemctl start standfast-agent@{VOLUME}")),
            Sight("takeover", "inspection", ("{STANDBY}",), PRIMARY),
        ),
    ),
    "failovers are paused": Scene(
        {PRIMARY: "standfast pause --reason maintenance"},
        {PRIMARY: "standfast resume"},
        (Sight("service", "failover", ("paused by", "maintenance"), PRIMARY),),
    ),
    "a standby on hold": Scene(
        {STANDBY: "standfast standby hold $(hostname) --reason maintenance"},
        {STANDBY: "standfast standby release $(hostname)"},
        (Sight("takeover", "hold", ("on hold by", "maintenance", "standby release")),),
    ),
    "a standby that no key opens": Scene(
        {STANDBY: f"mv {KEYS} {KEYS}.away"},
        {STANDBY: f"mv {KEYS}.away {KEYS}"},
        (
            Sight("replication", "way", ("door", "standfast standby authorize"), PRIMARY),
            Sight("replication", "cycle", ("standfast replicate {STANDBY}",), PRIMARY),
            Sight("replication", "age", (" behind", "standfast replicate {STANDBY}"), PRIMARY),
        ),
    ),
    "a key whose line names no node": Scene(
        {STANDBY: f"sed -i.good 's/ --from [^\"]*//' {KEYS}"},
        {STANDBY: f"mv {KEYS}.good {KEYS}"},
        (
            Sight("storage", "line", ("lacks --from NODE", f"of {KEYS}")),
            Sight("replication", "line", ("passes for any node", "--from {PRIMARY}"), PRIMARY),
        ),
    ),
    "a primary that no key opens": Scene(
        {PRIMARY: f"mv {KEYS} {KEYS}.away"},
        {PRIMARY: f"mv {KEYS}.away {KEYS}"},
        (Sight("takeover", "way-back", ("replicated to {PRIMARY}", "standby add {PRIMARY}")),),
    ),
    "a configuration that can't be read": Scene(
        {STANDBY: "cp $CONFIG $CONFIG.good; printf '\\n[nonsense]\\n' >>$CONFIG"},
        {STANDBY: "mv $CONFIG.good $CONFIG"},
        (Sight("replication", "survey", ("nonsense", "standby add {STANDBY}"), PRIMARY),),
    ),
    "a configuration that asks for what isn't there": Scene(
        {
            STANDBY: "mv /usr/bin/zstd /usr/bin/zstd.away; cp $CONFIG $CONFIG.good;"
            " sed -i -e 's/^clients = ./&\"nobody.invalid\", /'"
            " -e '/^.replication.$/a compression = \"zstd\"' $CONFIG;"
            " printf '\\n[hooks]\\npre_promote_failure = \"veto\"\\n' >>$CONFIG;"
            " mkdir -p /etc/standfast/hooks.d/pre-promote;"
            " touch /etc/standfast/hooks.d/pre-promote/10-ask; systemctl restart $AGENT"
        },
        {
            STANDBY: "mv /usr/bin/zstd.away /usr/bin/zstd; mv $CONFIG.good $CONFIG;"
            " rm -r /etc/standfast/hooks.d; systemctl restart $AGENT"
        },
        (
            Sight("storage", "options", ("{STANDBY} has no zstd", "install zstd")),
            Sight("replication", "options", ("{STANDBY} has no zstd", "install zstd"), PRIMARY),
            Sight("takeover", "clients", ("nobody.invalid", "nfs.clients")),
            Sight("takeover", "hooks", ("10-ask would be a veto", "not executable")),
        ),
    ),
    "a disk that is not mounted": Scene(
        {STANDBY: "umount -l /persist"},
        {STANDBY: "systemctl start persist.mount"},
        (
            Sight("storage", "disk", ("no btrfs at", "/persist/services-standby")),
            Sight("takeover", "disk", ("mount the volume's file system",)),
            Sight("replication", "disk", ("no btrfs at", "on {STANDBY}"), PRIMARY),
        ),
    ),
    "a bind mount of a mere directory": Scene(
        {STANDBY: f"mkdir /persist/mere; mount --bind /persist/mere {SNAPSHOTS}"},
        {STANDBY: f"umount {SNAPSHOTS}; rm -r /persist/mere"},
        (
            Sight("storage", "mounts", (SNAPSHOTS, "mere directory")),
            Sight("replication", "mounts", (f"{SNAPSHOTS} on {{STANDBY}}",), PRIMARY),
        ),
    ),
    "snapshots that everybody can enter": Scene(
        {STANDBY: f"mount -o remount,suid,dev /persist; chmod 0755 {SNAPSHOTS}"},
        {STANDBY: f"mount -o remount,nosuid,nodev /persist; chmod 0700 {SNAPSHOTS}"},
        (Sight("storage", "set-uid", (f"enter {SNAPSHOTS}", f"chmod 0700 {SNAPSHOTS}")),),
    ),
    "a full disk": Scene(
        {
            STANDBY: "free=$(df -B1 --output=avail /persist | tail -1);"
            " fallocate -l $((free - 20 * 2**20)) /persist/filler; sync"
        },
        {STANDBY: "rm /persist/filler; sync"},
        (
            Sight("storage", "room", ("{STANDBY}: ", "left for data")),
            Sight("replication", "room", ("{STANDBY}: ", "left for data"), PRIMARY),
            Sight("takeover", "space", ("left for data",)),
        ),
    ),
    "no program btrfs": Scene(
        {STANDBY: "mv /usr/bin/btrfs /usr/bin/btrfs.away"},
        {STANDBY: "mv /usr/bin/btrfs.away /usr/bin/btrfs"},
        (
            Sight("storage", "tools", ("no program `btrfs`", "install btrfs-progs")),
            Sight("replication", "tools", ("{STANDBY} has no program `btrfs`",), PRIMARY),
        ),
    ),
    "a path that leads to itself": Scene(
        {STANDBY: f"mv {SNAPSHOTS} {SNAPSHOTS}.away; ln -s services-standby {SNAPSHOTS}"},
        {STANDBY: f"rm {SNAPSHOTS}; mv {SNAPSHOTS}.away {SNAPSHOTS}"},
        (Sight("storage", "storage", ("not known", SNAPSHOTS, "[paths] in")),),
    ),
    "a tree that can't be replicated": Scene(
        {
            # With the subvolume in it no snapshot is taken, which the flag would keep for ever.
            PRIMARY: f"btrfs subvolume create /persist/services/inner; {OF_BTRFS};"
            " chattr +i /persist/services; sync"
        },
        {
            PRIMARY: f"chattr -i /persist/services; {NO_LONGER_RECEIVED};"
            " btrfs subvolume delete /persist/services/inner; sync"
        },
        (
            Sight("storage", "nested", ("services/inner", "btrfs subvolume delete"), PRIMARY),
            Sight("storage", "received", ("11111111-2222-4333-8444-5", "ro false"), PRIMARY),
            Sight("storage", "flags", ("immutable", "chattr -i -a /persist/services"), PRIMARY),
        ),
    ),
    "such a tree on a standby, from before": Scene(
        {
            STANDBY: "systemctl stop $AGENT; btrfs subvolume create /persist/services;"
            f" btrfs subvolume create /persist/services/inner; {OF_BTRFS};"
            " chattr +i /persist/services; sync"
        },
        {
            STANDBY: "chattr -i /persist/services; btrfs subvolume delete /persist/services/inner"
            " /persist/services; systemctl start $AGENT"
        },
        (
            Sight("replication", "nested", ("on {STANDBY}", "services/inner"), PRIMARY),
            Sight("replication", "received", ("/persist/services on {STANDBY}",), PRIMARY),
            Sight("replication", "flags", ("/persist/services itself on {STANDBY}",), PRIMARY),
        ),
    ),
    "a copy that was changed": Scene(
        {STANDBY: DAMAGE, PRIMARY: "standfast verify $STANDBY --full || true"},
        {},
        (
            Sight(
                "replication",
                "verified",
                ("DIFFERS: services@", "verify {STANDBY} --full"),
                PRIMARY,
                lingers=True,
            ),
        ),
    ),
    # With them the changed copy goes.
    "a standby that lost its snapshots": Scene(
        {STANDBY: f"btrfs subvolume delete {SNAPSHOTS}/services@* /persist/services@* || true"},
        {PRIMARY: FULL_AGAIN},
        (
            Sight("storage", "replicas", (SNAPSHOTS, "standby add {STANDBY}")),
            Sight("takeover", "snapshot", ("no published snapshot",)),
            Sight("replication", "full", ("replicate {STANDBY} --full",), PRIMARY),
        ),
    ),
    "what a server and its lease process need": Scene(
        {
            STANDBY: "systemctl mask --runtime -q $LEASE; cd /etc/systemd/system;"
            " mv nfs-server.service /root; systemctl daemon-reload;"
            " systemd-run -q --unit=squatter python3 -m http.server 2049;"
            " mount -t tmpfs none /data/services; consul maint -enable"
        },
        {
            STANDBY: "consul maint -disable; umount /data/services; systemctl stop squatter;"
            " mv /root/nfs-server.service /etc/systemd/system; systemctl daemon-reload;"
            " systemctl unmask --runtime -q $LEASE"
        },
        (
            Sight("takeover", "lease", ("standfast-lease@{VOLUME}", "masked", "unmask")),
            Sight("takeover", "unit", ("nfs-server.service is not-found",)),
            Sight("takeover", "port", ("listens at TCP port 2049", "ss -ltnp")),
            Sight("takeover", "bind", ("/data/services is taken: tmpfs", "nothing else")),
            Sight("takeover", "hidden", ("consul maint -disable",)),
        ),
    ),
    "no program systemctl, and none for the fence": Scene(
        {STANDBY: "mv /usr/bin/systemctl /root; mv $(readlink -f $(command -v nft)) /root"},
        {STANDBY: "mv /root/systemctl /usr/bin; mv /root/nft /usr/sbin"},
        (
            Sight("takeover", "server", ("could not be looked at", "systemctl")),
            Sight("takeover", "fence", ("the fence can't be used", "nft")),
            Sight("service", "trouble", ("nft", "journalctl -u standfast-agent@{VOLUME}")),
        ),
    ),
    "another server in Consul, which answers": Scene(
        {
            STANDBY: f"systemd-run -q --unit=by-hand python3 -c {shlex.quote(SOURCE)}"
            f" {BESIDE_THE_FENCE} 2049",
            THIRD: "consul services register -name=$VOLUME -id=by-hand"
            f" -address={BESIDE_THE_FENCE} -port=2049",
        },
        {THIRD: "consul services deregister -id=by-hand", STANDBY: "systemctl stop by-hand"},
        (Sight("takeover", "service", ("already active at", "deregister -id=by-hand")),),
    ),
    "a node that is to mount the volume, and can't": Scene(
        {
            STANDBY: "mv $(readlink -f /usr/sbin/mount.nfs4) /root/mount.nfs; printf '[Mount]\\n"
            "What=nowhere.service.consul:/persist/services\\nWhere=/data/services\\nType=nfs4\\n"
            "[Install]\\nWantedBy=remote-fs.target\\n' >/etc/systemd/system/data-services.mount;"
            " systemctl daemon-reload; systemctl enable -q data-services.mount"
        },
        {
            STANDBY: "systemctl disable -q data-services.mount; mv /root/mount.nfs /usr/sbin;"
            " rm /etc/systemd/system/data-services.mount; systemctl daemon-reload;"
            " systemctl reset-failed"
        },
        (
            Sight("clients", "nfs-tools", ("no mount.nfs4", "install nfs-common")),
            Sight("clients", "dns", ("does not resolve", "8600")),
        ),
    ),
    "no agent of Nomad": Scene(
        {STANDBY: "curl -sf -X POST $NOMAD/stand-in/kill/$STANDBY"},
        {STANDBY: "curl -sf -X POST $NOMAD/stand-in/start/$STANDBY"},
        (
            Sight("nomad", "nomad", ("not known", "systemctl status nomad")),
            Sight("nomad", "following", ("journalctl -u standfast-agent@{VOLUME}",)),
        ),
    ),
    "a job that runs on when its node is cut off": Scene(
        {
            PRIMARY: "curl -sf $NOMAD/v1/job/db | $PYTHON -c 'import json, sys;"
            ' job = json.load(sys.stdin); job["ID"] = job["Name"] = "careless";'
            ' job["TaskGroups"][0]["Disconnect"] = None; print(json.dumps({"Job": job}))\''
            " | curl -sf -X POST -d @- $NOMAD/v1/jobs"
        },
        {PRIMARY: 'curl -sf -X DELETE "$NOMAD/v1/job/careless?purge=true"'},
        (Sight("nomad", "cut-off", ("careless.g", "stop_on_client_after"), PRIMARY),),
    ),
    "the primary's meta on a standby, and nobody who sees to it": Scene(
        {
            PRIMARY: "systemctl stop $AGENT",
            STANDBY: "systemctl stop $AGENT; curl -sf -X POST"
            ' -d \'{"Meta": {"storage_role": "primary"}}\' $OWN_NOMAD/v1/client/metadata',
        },
        {STANDBY: "systemctl start $AGENT", PRIMARY: "systemctl start $AGENT"},
        (Sight("nomad", "meta", ("on several nodes", "{PRIMARY}", "{STANDBY}"), THIRD),),
    ),
    "a server that doesn't start": Scene(
        {
            PRIMARY: "d=/run/systemd/system/nfs-server.service.d; mkdir -p $d;"
            " printf '[Service]\\nExecStartPre=/bin/false\\n' >$d/zz-broken.conf;"
            " systemctl daemon-reload; systemctl stop nfs-server"
        },
        {
            PRIMARY: "rm /run/systemd/system/nfs-server.service.d/zz-broken.conf;"
            " systemctl daemon-reload"
        },
        (Sight("service", "serving", ("nobody", "{PRIMARY}"), PRIMARY),),
    ),
    # What was flushed counts until the epoch is over.
    "a firewall that somebody flushes again and again": Scene(
        {PRIMARY: FLUSHER},
        {PRIMARY: "systemctl stop flusher; standfast switchover --to $STANDBY"},
        (
            Sight("service", "fence", ("the rules are missing",), PRIMARY),
            Sight("service", "firewall", ("found gone", "nft flush ruleset"), PRIMARY),
        ),
    ),
}

SEEN = {(sight.group, sight.check) for scene in SCENES.values() for sight in scene.sights}
"""Group and check."""
