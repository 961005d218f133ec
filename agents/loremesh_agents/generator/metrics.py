"""What Prometheus sees of the admission."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class PrometheusAdmissionMetrics:
    """Implements `generator.admission.AdmissionMetrics`.

    Args:
        registry: Where the metrics are collected.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"generator_{name}", meaning, registry=registry, multiprocess_mode="livesum")

        self._room = gauge("tokens_allowed", "Tokens that may be in flight now.")
        self._in_flight = gauge("tokens_in_flight", "Tokens of the prompts and answers that engines are at work on.")
        self._waiting = gauge("generations_waiting", "Generations that wait to begin.")
        self._waiting_tokens = gauge("tokens_waiting", "Tokens of the generations that wait to begin.")
        self._shed = Counter(
            "generator_generations_shed", "Generations refused with OVERLOADED.", ("cause",), registry=registry
        )

    def state(self, *, room: int, in_flight: int, waiting: int, waiting_tokens: int) -> None:
        """See the protocol."""
        self._room.set(room)
        self._in_flight.set(in_flight)
        self._waiting.set(waiting)
        self._waiting_tokens.set(waiting_tokens)

    def shed(self, cause: str) -> None:
        """See the protocol."""
        self._shed.labels(cause).inc()
