"""Spans around calls, on both sides, as servers and channels see them; `otel` makes real ones."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import grpc

from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.context import Metadata


class ClientSpan(Protocol):
    """The span of a call to a peer."""

    @property
    def metadata(self) -> Metadata:
        """What to send along, so that the peer's span becomes a child of this one."""
        ...

    def finish(self, code: grpc.StatusCode) -> None:
        """Ends the span with the final status of the call. Only the first time counts."""
        ...


class Tracing(Protocol):
    """Makes the spans of one agent."""

    def server_span(self, call: ServerCall) -> AbstractContextManager[None]:
        """The span of a call being served, from here to the end of the block."""
        ...

    def client_span(self, peer: str, method: str) -> ClientSpan:
        """The span of a call to a peer, begun now.

        Args:
            peer: Name of the agent that is called.
            method: Full name of the method, as in `loremesh.v1.RetrieverService/Retrieve`.
        """
        ...


class _NoClientSpan:
    metadata: Metadata = ()

    def finish(self, code: grpc.StatusCode) -> None:
        pass


class NoTracing:
    """Makes no spans."""

    _span = _NoClientSpan()

    @contextmanager
    def server_span(self, call: ServerCall) -> Generator[None]:
        """Does nothing."""
        del call
        yield

    def client_span(self, peer: str, method: str) -> ClientSpan:
        """A span that does nothing."""
        del peer, method
        return self._span


NO_TRACING: Tracing = NoTracing()
"""For processes without an endpoint to send spans to."""
