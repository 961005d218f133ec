"""What an interceptor is."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from loremesh_agents.runtime.call import ServerCall

Proceed: TypeAlias = Callable[[ServerCall], Awaitable[None]]
"""Goes on with a call: through the remaining interceptors to the servicer, until the last response is sent."""


class Interceptor(Protocol):
    """Something that surrounds every call of a server."""

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call by awaiting `proceed(call)` once, or raises instead.

        It runs once a call, whatever the method's shape, in the task in which the whole call runs: a cancel, a deadline
        and an error all arrive here as exceptions from `proceed`, in order, innermost first.
        """
        ...
