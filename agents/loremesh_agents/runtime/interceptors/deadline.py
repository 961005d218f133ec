"""Ends calls whose time is up."""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import grpc

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, StreamIdle
from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.idle import IdleTimer
from loremesh_agents.runtime.interceptors.base import Proceed

_TRANSIT = 0.02
"""Seconds by which a caller may begin to count before us. When its deadline passes it resets the stream, and that looks like a cancel."""
_CLOCK_STEP = 0.001


@dataclass(frozen=True, slots=True)
class MethodTimes:
    """How long calls of a method may take.

    Attributes:
        default_deadline: Seconds for a call whose caller sets no deadline; None for as long as messages flow.
        idle_timeout: Seconds for which no message may go either way on a stream; None for any time.
    """

    default_deadline: float | None = 60.0
    idle_timeout: float | None = 300.0


@dataclass(frozen=True, slots=True)
class DeadlineOptions:
    """How long calls may take.

    Attributes:
        default: For methods that are not named.
        methods: By full name of the method, as in `loremesh.v1.CoordinatorService/Chat`.
        floor: Seconds; a call that has less left is refused at once.
    """

    default: MethodTimes = MethodTimes()
    methods: Mapping[str, MethodTimes] = field(default_factory=dict[str, MethodTimes])
    floor: float = 0.005


class DeadlineInterceptor:
    """Gives every call a deadline, its caller's or the method's, and every stream an idle timeout."""

    def __init__(self, agent: str, options: DeadlineOptions) -> None:
        self._agent = agent
        self._options = options

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call within its time.

        Raises:
            BudgetExhausted: Too little time is left to begin, or the time ran out.
            StreamIdle: No message went either way for too long.
        """
        times = self._options.methods.get(call.method.full_name, self._options.default)
        now = time.monotonic()  # before gRPC reads its clock: a pause between the two must not make the deadline later
        # gRPC gives None without a deadline, whatever its type says.
        given = cast("float | None", call.servicer_context.time_remaining())
        seconds = times.default_deadline if given is None else given
        deadline = None
        if seconds is not None:
            if seconds < self._options.floor:
                raise BudgetExhausted(self._agent, "admission")
            deadline = Deadline(now + (seconds if given is None else seconds - _rounding(seconds)))
            call.set_context(replace(call.request_context, deadline=deadline))
        idle_timeout = times.idle_timeout if call.method.streaming else None
        idle: IdleTimer | None = None
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                if idle_timeout is not None:
                    # An expired timeout is the clean way to end one's own task from a timer.
                    idle = IdleTimer(idle_timeout, lambda: call.active, lambda: timeout.reschedule(0))
                await proceed(call)
        except TimeoutError:
            if not timeout.expired():
                raise
            if idle is not None and idle.expired:
                raise StreamIdle(self._agent, idle.seconds) from None
            raise BudgetExhausted(self._agent, call.method.name) from None
        except asyncio.CancelledError:
            if deadline is not None and deadline.remaining() <= _TRANSIT:
                call.code = grpc.StatusCode.DEADLINE_EXCEEDED
            raise
        finally:
            if idle is not None:
                idle.stop()


def _rounding(seconds: float) -> float:
    """How much later than its caller's a deadline may be, in seconds; the way of the request is not counted.

    gRPC sends milliseconds, of long times three digits, and rounds up. What is left here may have one digit less than what was
    sent when a busy process comes to it late, so the step is that of a time twice as long. The clocks of both sides, which have
    steps of a millisecond, are rounded up as well.
    """
    return 10.0 ** (math.floor(math.log10(max(2 * seconds, 0.1))) - 2) + 2 * _CLOCK_STEP
