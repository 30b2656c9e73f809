"""`GET /metrics`, in Prometheus' text format: gauges of the processes behind this port, totals of the deployment."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api.services import Services
from broker.errors import StoreError
from broker.throttle import Circuit
from broker.totals import Total

_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


_CIRCUIT = {Circuit.CLOSED: 0, Circuit.HALF_OPEN: 1, Circuit.OPEN: 2}


def router(services: Services) -> APIRouter:
    """The metrics route."""
    routes = APIRouter()

    async def metrics() -> Response:
        """Gauges always; totals and queue only while the store answers."""
        lines: list[str] = []

        def put(name: str, kind: str, help_: str, *samples: tuple[str, float]) -> None:
            lines.append(f"# HELP {name} {help_}")
            lines.append(f"# TYPE {name} {kind}")
            lines.extend(f"{name}{labels} {value:g}" for labels, value in samples)

        now = services.counted()
        put("legato_viewers", "gauge", "Attached viewers.", ("", now.viewers))
        put("legato_topics", "gauge", "Generations followed, by each process.", ("", now.topics))
        connections = now.subscriptions
        put("legato_subscription_connections", "gauge", "Connections that carry notifications.", ("", connections))
        put("legato_draining", "gauge", "How many processes are stopping.", ("", now.draining))
        try:
            waiting, totals = await services.queue.waiting(), await services.totals.read()
            states = {name: await services.throttle.state(name) for name in services.settings.providers}
        except StoreError:
            put("legato_store_up", "gauge", "1 while the store answers.", ("", 0))
        else:
            put("legato_store_up", "gauge", "1 while the store answers.", ("", 1))
            put("legato_queue_waiting", "gauge", "Jobs that wait for a worker.", ("", waiting))
            ended = [
                (f'{{status="{total.value.removeprefix("ended_")}"}}', totals[total])
                for total in (Total.ENDED_COMPLETED, Total.ENDED_FAILED, Total.ENDED_CANCELLED)
            ]
            put("legato_generations_ended_total", "counter", "Ends that workers wrote.", *ended)
            put("legato_generations_abandoned_total", "counter", "Nobody was reading.", ("", totals[Total.ABANDONED]))
            unspent = totals[Total.TOKENS_UNSPENT]
            put("legato_tokens_unspent_total", "counter", "Tokens that abandoned ones could have used.", ("", unspent))
            put(
                "legato_handed_over_total",
                "counter",
                "Taken on from a leaving worker.",
                ("", totals[Total.HANDED_OVER]),
            )
            told = [
                ('{outcome="delivered"}', totals[Total.WEBHOOKS_DELIVERED]),
                ('{outcome="dead"}', totals[Total.WEBHOOKS_DEAD]),
            ]
            put("legato_webhooks_total", "counter", "Deliveries of webhooks that are over.", *told)
            put("legato_retries_total", "counter", "Attempts that were tried again.", ("", totals[Total.RETRIED]))
            put(
                "legato_provider_circuit",
                "gauge",
                "0: calls go through; 1: a few try it; 2: none goes through.",
                *((f'{{provider="{name}"}}', _CIRCUIT[state.circuit]) for name, state in states.items()),
            )
            put(
                "legato_provider_calls",
                "gauge",
                "Calls under way, by all workers.",
                *((f'{{provider="{name}"}}', state.in_flight) for name, state in states.items()),
            )
            put(
                "legato_provider_waiting",
                "gauge",
                "Generations that wait for their turn under a provider's limits.",
                *((f'{{provider="{name}"}}', state.waiting) for name, state in states.items()),
            )
        return Response("\n".join(lines) + "\n", headers={"content-type": _MEDIA_TYPE})

    routes.add_api_route("/metrics", metrics, methods=["GET"])
    routes.add_api_route("/metrics", metrics, methods=["HEAD"], include_in_schema=False)
    return routes
