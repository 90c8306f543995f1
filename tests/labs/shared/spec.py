"""What is written on every lab's nodes: who they are, the services they run.

Invariant: two labs differ in what their nodes are made of, never in what is configured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Units of Debian's own that mean nothing in a lab; leaving them out halves the boot.
MASKED = (
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "getty.target",
    "kmod-static-nodes.service",
    "nfs-common.service",
    "proc-sys-fs-binfmt_misc.automount",
    "rpcbind.service",
    "rpcbind.socket",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-repart.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
)
CONSUL_UNIT = """\
[Unit]
Description=Consul (lab)
After=network.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/bin/consul agent -config-dir=/etc/consul.d
ExecReload=/bin/kill -HUP $MAINPID
KillSignal=SIGINT
Restart=on-failure
RestartSec=1

[Install]
WantedBy=multi-user.target
"""
SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
"""
SSH_CONFIG = """\
Host *
  BatchMode yes
  ConnectTimeout 5
"""
JOURNALD = """\
[Journal]
Storage=persistent
Compress=no
RateLimitIntervalSec=0
RateLimitBurst=0
"""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a node of the cluster is told about itself and the others."""

    name: str
    address: str
    cluster: Mapping[str, str]
    """Address of every node by name, this one included."""
    consul_config: Mapping[str, Any] = field(default_factory=dict)
    """Merged over the lab's own Consul configuration."""


def consul_config(spec: Spec) -> dict[str, Any]:
    """A server of a cluster in which every node is one."""
    others = [address for name, address in spec.cluster.items() if name != spec.name]
    config: dict[str, Any] = {
        "server": True,
        "bootstrap_expect": len(spec.cluster),
        "node_name": spec.name,
        "datacenter": "lab",
        "data_dir": "/var/lib/consul",
        "bind_addr": spec.address,
        "client_addr": f"127.0.0.1 {spec.address}",
        "retry_join": others,
        "retry_interval": "250ms",
        "performance": {"raft_multiplier": 1},
        # A server that comes back votes again after this instead of 10 s: the lab waits for it
        # before the next cut.
        "autopilot": {"server_stabilization_time": "2s"},
        "disable_update_check": True,
        "enable_debug": False,
        "ports": {"grpc": -1},
    }
    return config | dict(spec.consul_config)
