"""Two storage nodes whose exporters a Prometheus scrapes."""

from __future__ import annotations

from tests.labs.containers.cluster import AGENT, VOLUME, ContainerCluster
from tests.labs.shared.cluster import UNITS

FACTOR = 15.0


INTERVAL_S = 10


SCRAPE_S = 2


class Watched(ContainerCluster):
    """Two storage nodes whose exporters listen on their addresses."""

    interval_s = INTERVAL_S

    def other(self) -> str:
        """The standby."""
        return next(node.name for node in self.storage if node.name != self.primary())

    def install(self) -> None:
        self.lab.storage = ("n1", "n2")
        self.lab.install()
        for node in self.storage:
            self.configure(node)
            for other in self.storage:
                if other is not node:
                    node.authorize(other, f"standfast receive {VOLUME} --from {other.name}")
            node.sh("install -d -m 0700 /persist/services-standby; mkdir -p /data/services")
            listen = f"ExecStart=/usr/local/bin/standfast-exporter --listen {node.address}:9756"
            node.write(
                "/etc/systemd/system/standfast-exporter.service.d/listen.conf",
                f"[Service]\nExecStart=\n{listen}\n",
            )
            units = f"{AGENT} {UNITS} standfast-exporter"
            node.sh(f"systemctl daemon-reload; systemctl enable --now {units}")
