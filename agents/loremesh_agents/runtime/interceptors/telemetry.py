"""Counts, times and traces every call."""

from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.interceptors.base import Proceed
from loremesh_agents.runtime.metrics import AgentMetrics
from loremesh_agents.runtime.tracing import Tracing


class TelemetryInterceptor:
    """Outermost: its numbers and its span cover the whole call and carry its final status."""

    def __init__(self, metrics: AgentMetrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._tracing = tracing

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call between the begin and the end of its measurements."""
        with self._metrics.observe(call), self._tracing.server_span(call):
            await proceed(call)
