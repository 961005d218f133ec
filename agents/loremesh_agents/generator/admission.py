"""Lets as many generations begin as the engines can hold, by tokens, and fairly between those who ask.

What engines hold of a generation is its prompt and what they write, so it is weighed by the tokens of both. Two rules share the room out:

- Of several that wait, the one goes first whose principal has been served the fewest tokens (the virtual token counter of Sheng et al., "Fairness in Serving
  Large Language Models", OSDI 2024). What a generation may write is charged when it begins; what it did not write is given back when it ends.
- Nobody takes all of the room: what a principal holds may not exceed a multiple of what is free (dynamic thresholds: Choudhury and Hahne, "Dynamic Queue
  Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking, 1998). So who asks now and then begins at once beside one who floods.

Where engines tell their load, the room follows it: less as soon as all of them let generations wait, more as long as they do not (additive increase, multiplicative
decrease: Chiu and Jain, 1989).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, LoremeshError, Overloaded
from loremesh_agents.domain.principal import Principal
from loremesh_agents.generator.busy_rate import BusyRate
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.ports.engine_load import EngineLoad, LoadGauge

_log = logging.getLogger(__name__)

_AGENT = "generator"
_SHORTEST_PAUSE = 0.1
_LONGEST_PAUSE = 60.0
_LOOK_SECONDS = 0.25
"""Between two looks at the load of the engines."""
_MOST_LOOK_SECONDS = 1.0
_LESS = 0.9
_MORE = 0.02


class AdmissionMetrics(Protocol):
    """Where admission tells what it does."""

    def state(self, *, room: int, in_flight: int, waiting: int, waiting_tokens: int) -> None:
        """Takes the state: tokens that may be in flight, tokens that are, generations that wait, and their tokens."""
        ...

    def shed(self, cause: str) -> None:
        """Counts a generation that was refused: `queue full`, `too long` or `timeout`."""
        ...


class _Principal:
    """One who asks: `counter` is the tokens that it has been served, on a scale on which all who wait are near one another."""

    __slots__ = ("backlog", "counter", "held", "queue")

    def __init__(self, counter: float) -> None:
        self.counter = counter
        self.held = 0
        self.backlog = 0
        self.queue: deque[Generation] = deque()


class Generation:
    """A generation that waits, or is in flight.

    Attributes:
        used: Tokens of its prompt and of what has been written of it, as far as they are known.
    """

    __slots__ = ("admitted", "begun", "order", "principal", "used", "weight")

    def __init__(self, principal: _Principal, weight: int, order: int) -> None:
        self.principal = principal
        self.weight = weight
        self.order = order
        self.used = 0
        self.admitted = False
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class TokenAdmission:
    """Bounds the tokens in flight and the queue before them.

    Args:
        settings: Limits.
        engines: How many engines share the work.
        gauges: Of those that tell their load.
        metrics: Where it tells what it does; None for nowhere.
        look_seconds: Time between two looks at the engines' load.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        settings: GeneratorSettings,
        *,
        engines: int = 1,
        gauges: Sequence[LoadGauge] = (),
        metrics: AdmissionMetrics | None = None,
        look_seconds: float = _LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = settings.tokens_in_flight * engines
        self._longest_queue = settings.queue_length
        self._longest_wait = settings.queue_seconds
        self._multiple = settings.principal_share / (1 - settings.principal_share)
        self._gauges = tuple(gauges)
        self._metrics = metrics
        self._look_seconds = look_seconds
        self._rate = BusyRate(clock)
        self._room = float(self._limit)
        self._in_flight = 0
        self._principals: dict[str, _Principal] = {}
        self._served = 0.0
        self._waiting = 0
        self._order = 0
        self._looking: asyncio.Task[None] | None = None
        self._tell()

    @property
    def in_flight(self) -> int:
        """Tokens in flight."""
        return self._in_flight

    @property
    def room(self) -> int:
        """Tokens that may be in flight now."""
        return int(self._room)

    @property
    def waiting(self) -> int:
        """Generations that wait."""
        return self._waiting

    @property
    def principals(self) -> int:
        """How many principals are known: those with something in flight or waiting."""
        return len(self._principals)

    @asynccontextmanager
    async def admitted(
        self, principal: Principal, prompt_tokens: int, max_tokens: int, *, deadline: Deadline
    ) -> AsyncGenerator[Generation]:
        """Waits until a generation may begin; it is in flight within the block.

        Args:
            principal: Who asks; those who do not say who they are count as one.
            prompt_tokens: Tokens of the prompt, about.
            max_tokens: Most tokens of the answer.
            deadline: When the answer becomes useless.

        Raises:
            Overloaded: It cannot begin in time.
            BudgetExhausted: The deadline passed while it waited.
        """
        weight = max(1, min(prompt_tokens + max_tokens, self._limit))
        key = principal.subject
        generation = self._arrive(key, weight)
        try:
            if not generation.admitted:
                await self._wait(generation, deadline)
            generation.used = prompt_tokens
            yield generation
        finally:
            self._leave(key, generation)

    async def close(self) -> None:
        """Stops looking at the engines' load."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        for gauge in self._gauges:
            await gauge.close()

    def _arrive(self, key: str, weight: int) -> Generation:
        """A generation joins the queue, or begins at once."""
        principal = self._principals.get(key)
        if principal is None:
            principal = self._principals[key] = _Principal(self._served)
        if not principal.queue:
            # Time in which nothing was asked is not saved up.
            principal.counter = max(principal.counter, self._served)
        generation = Generation(principal, weight, self._order)
        self._order += 1
        principal.queue.append(generation)
        principal.backlog += weight
        self._waiting += 1
        self._begin_next()
        return generation

    async def _wait(self, generation: Generation, deadline: Deadline) -> None:
        if self._waiting > self._longest_queue:
            self._push_out(generation)
        expected = self._expected_wait(generation.principal.backlog)
        longest = min(self._longest_wait, deadline.remaining())
        if expected is not None and expected > longest and not generation.begun.done():
            raise self._shed("too long", expected)
        try:
            async with asyncio.timeout(longest):
                await generation.begun
        except TimeoutError:
            if generation.admitted:
                return
            if not generation.begun.cancelled():
                # It was pushed out at the same time.
                await generation.begun
            if deadline.expired:
                raise BudgetExhausted(_AGENT, "admission") from None
            raise self._shed("timeout", expected) from None

    def _push_out(self, newest: Generation) -> None:
        """Makes one place free: at the end of the queue of the principal that waits for most tokens."""
        longest = max(
            (entry for entry in self._principals.values() if entry.queue),
            key=lambda entry: (entry.backlog, entry is newest.principal),
        )
        generation = longest.queue[-1]
        error = self._shed("queue full", self._expected_wait(longest.backlog))
        self._unqueue(generation)
        generation.begun.set_exception(error)

    def _expected_wait(self, backlog: int) -> float | None:
        """Seconds until all that a principal waits for has begun: meanwhile each of the others is served as much at the most."""
        rate = self._rate.per_second
        if rate is None:
            return None
        return sum(min(entry.backlog, backlog) for entry in self._principals.values()) / rate

    def _shed(self, cause: str, expected: float | None) -> LoremeshError:
        if self._metrics is not None:
            self._metrics.shed(cause)
        pause = self._longest_wait if expected is None else expected
        return Overloaded.queueing(_AGENT, self._limit, min(max(pause, _SHORTEST_PAUSE), _LONGEST_PAUSE))

    def _unqueue(self, generation: Generation) -> None:
        principal = generation.principal
        principal.queue.remove(generation)
        principal.backlog -= generation.weight
        self._waiting -= 1

    def _leave(self, key: str, generation: Generation) -> None:
        """A generation has ended, or waits no longer."""
        principal = generation.principal
        if generation.admitted:
            principal.counter += generation.used - generation.weight
            principal.held -= generation.weight
            self._in_flight -= generation.weight
            self._rate.observe(busy=self._in_flight > 0, done=generation.weight)
        elif generation in principal.queue:
            self._unqueue(generation)
        if not principal.held and not principal.queue and self._principals.get(key) is principal:
            del self._principals[key]
        if not self._principals:
            self._served = 0.0
        self._begin_next()

    def _begin_next(self) -> None:
        """Lets begin what may begin."""
        while self._waiting:
            first = min(
                (entry for entry in self._principals.values() if entry.queue and self._within_share(entry)),
                key=lambda entry: (entry.counter, entry.queue[0].order),
                default=None,
            )
            # Who is first and asks for much is not overtaken by those who ask for little, else it would wait for ever.
            if first is None or (self._in_flight and self._in_flight + first.queue[0].weight > self._room):
                break
            generation = first.queue[0]
            self._unqueue(generation)
            self._rate.observe(busy=True)
            self._served = max(self._served, first.counter)
            first.counter += generation.weight
            first.held += generation.weight
            self._in_flight += generation.weight
            generation.admitted = True
            if not generation.begun.done():
                generation.begun.set_result(None)
        self._tell()
        if self._gauges and self._principals and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look())

    def _within_share(self, principal: _Principal) -> bool:
        """Whether the next generation of a principal leaves enough of the room free; the first one of each may."""
        if not principal.held:
            return True
        weight = principal.queue[0].weight
        return principal.held + weight <= self._multiple * (self._room - self._in_flight - weight)

    def _tell(self) -> None:
        if self._metrics is not None:
            waiting_tokens = sum(entry.backlog for entry in self._principals.values())
            self._metrics.state(
                room=self.room, in_flight=self._in_flight, waiting=self._waiting, waiting_tokens=waiting_tokens
            )

    async def _look(self) -> None:
        """Looks at the engines' load as long as there is work."""
        while self._principals:
            # First the pause: the engine has the first generation to begin, and its load says nothing before that.
            await asyncio.sleep(self._look_seconds)
            deadline = Deadline.after(_MOST_LOOK_SECONDS)
            found = await asyncio.gather(*(_load(gauge, deadline) for gauge in self._gauges))
            loads = [load for load in found if load is not None]
            if loads:
                self._adapt(saturated=all(load.saturated for load in loads))

    def _adapt(self, *, saturated: bool) -> None:
        if not saturated:
            self._room = min(self._limit, self._room + _MORE * self._limit)
        elif self._in_flight <= self._room:
            # Else the last decrease has not come into effect yet.
            self._room = max(1.0, _LESS * self._in_flight)
        self._begin_next()


async def _load(gauge: LoadGauge, deadline: Deadline) -> EngineLoad | None:
    try:
        return await gauge.load(deadline=deadline)
    except LoremeshError as error:
        _log.debug("an engine does not tell its load: %s", error)
        return None
