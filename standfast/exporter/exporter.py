"""`standfast exporter`: one process for metrics, status page and health checks of this node.

Invariant: it only reads. It listens on loopback unless it is told another address; passwords and
TLS are a reverse proxy's (docs/reverse-proxy.md). `/-/healthy` says no more than that this process
runs.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable, Sequence

from prometheus_client.exposition import choose_encoder

from standfast.agent.document import fetch
from standfast.config.model import Config
from standfast.errors import Unreachable, UsageError, said
from standfast.exporter import page, server
from standfast.exporter.metrics import SCRAPE_S, VolumeMetrics
from standfast.exporter.web import Request, Response, Routes, application, plain
from standfast.status.asking import ANSWER_S
from standfast.status.document import Status
from standfast.system.clock import Deadline
from standfast.system.threads import SingleFlight

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:9756"
HEALTHY = "/-/healthy"
# The scraper gives up then: an answer a little earlier is worth more.
TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"
AHEAD_S = 0.5
# The agent itself takes ANSWER_S at most to be called silent.
ROLE_S = ANSWER_S + 0.5


def metrics_route(metrics: VolumeMetrics) -> Callable[[Request], Response]:
    """Answers with text or OpenMetrics, as asked for; over before the scraper gives up."""

    def route(request: Request) -> Response:
        deadline = Deadline.after(scrape_s(request.headers.get(TIMEOUT_HEADER)))
        try:
            encode, kind = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # a version that is no number
            encode, kind = choose_encoder("")
        return Response(encode(metrics.registry(deadline)), kind)

    return route


def scrape_s(told: str | None) -> float:
    """Returns how long a scrape may take, seconds, by what Prometheus says of its own patience."""
    try:
        patience_s = float(told or "inf")
    except ValueError:
        return SCRAPE_S
    return min(SCRAPE_S, max(patience_s - AHEAD_S, AHEAD_S)) if patience_s > 0 else SCRAPE_S


def is_primary(status: Status) -> bool:
    """Says whether this node serves."""
    return status.node_serves


def is_standby(status: Status) -> bool:
    """Says whether this node follows a primary."""
    return status.role == "standby"


def role_route(
    configs: Sequence[Config],
    wanted: Callable[[Status], bool],
    look: Callable[[Config], Status] = fetch,
) -> Callable[[Request], Response]:
    """Answers 200 while this node has the role, 503 while it hasn't or can't be sure."""
    flights = SingleFlight()
    by_name = {config.volume: config for config in configs}

    def route(request: Request) -> Response:
        volume = request.first("volume")
        if volume is None and len(by_name) > 1:
            return plain(f"several volumes are here: add ?volume= {' or '.join(by_name)}", 400)
        config = next(iter(configs)) if volume is None else by_name.get(volume)
        if config is None:
            return plain(f"no such volume here; there is {' and '.join(by_name)}", 404)
        try:
            status = flights.look(config.volume, lambda: look(config), Deadline.after(ROLE_S))
        except Exception as error:  # noqa: BLE001  # not sure is 503
            log.debug("%s: %s", request.path, said(error))
            return plain("unknown: the agent gives no answer", 503)
        if status.agent is not True:
            return plain("unknown: no agent runs here", 503)
        return plain(f"{config.volume} {status.role}", 200 if wanted(status) else 503)

    return route


def routes(configs: Sequence[Config]) -> Routes:
    """Returns everything that is answered."""
    return {
        "/metrics": metrics_route(VolumeMetrics(configs)),
        HEALTHY: lambda _request: plain("ok"),
        "/primary": role_route(configs, is_primary),
        "/standby": role_route(configs, is_standby),
        **page.application_routes(configs),
    }


def address_of(text: str) -> tuple[str, int]:
    """Reads `127.0.0.1:9756` or `[::1]:9756`; UsageError for anything else, an empty address above
    all: that would be every address of this machine."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and re.fullmatch("[0-9]{1,5}", port) and int(port) < 65536):
        raise UsageError(f"{text!r} is not ADDRESS:PORT, for example {DEFAULT_LISTEN}")
    return host, int(port)


def warnings(address: str) -> Sequence[str]:
    """Says what everybody who can reach `address` can do that they had better not."""
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return ()
    return (
        f"everybody who reaches {address} can read names, addresses and the state of this cluster: "
        f"a reverse proxy can ask for a password (docs/reverse-proxy.md)",
    )


def serve(configs: Sequence[Config], listen: str = DEFAULT_LISTEN) -> None:
    """Answers until killed; UsageError, or Unreachable when the address can't be had."""
    host, port = address_of(listen)
    try:
        listener = server.listen(host, port)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None)
        raise Unreachable(
            f"can't listen on {listen} ({why or error}): is another exporter running "
            f"there? `--listen ADDRESS:PORT` chooses another address"
        ) from error
    with listener:
        # Only now: looking at the volumes begins with it.
        answers = application(routes(configs))
        for warning in warnings(listener.getsockname()[0]):
            log.warning("%s", warning)
        volumes = ", ".join(config.volume for config in configs)
        log.info("%s: status page and metrics at http://%s/", volumes, listen)
        server.serve(answers, listener)
