"""Gives every call its query id and makes its circumstances known to all code that serves it."""

from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.context import QUERY_ID_KEY, RequestContext, activate, query_id_from
from loremesh_agents.runtime.interceptors.base import Proceed


class RequestContextInterceptor:
    """Takes over the caller's query id or makes one, and tells it: with the status to a caller who knows it or gets an error, else before the response."""

    def __init__(self, agent: str) -> None:
        self._agent = agent

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call with `context.current()` set."""
        query_id = query_id_from(call.metadata)
        call.trailing_metadata = ((QUERY_ID_KEY, query_id),)
        if call.metadata.get(QUERY_ID_KEY) == query_id:
            # Initial metadata cost about as much as a message; what goes with the status costs nothing.
            call.servicer_context.set_trailing_metadata(call.trailing_metadata)
        else:
            call.initial_metadata = call.trailing_metadata
        call.request_context = RequestContext(query_id=query_id, agent=self._agent, method=call.method.full_name)
        with activate(call.request_context):
            await proceed(call)
