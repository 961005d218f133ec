"""How long the tokens of a stream wait for one another, by how busy the process is."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

_TICK = 0.01
_STILL = 0.0005
"""Seconds by which a timer is late in an event loop that has little to do: loops round time to milliseconds."""
_WEIGHT = 0.1
_PAUSES_A_LAG = 20.0
_LONGEST = 0.05
_A_STREAM = 0.0005
"""Seconds of pause for each stream at the most: a few streams are not what keeps a loop busy."""


class MessagePace:
    """Says how far apart the messages of a stream are to be.

    A message costs a process far more than a token does. An event loop that is busy makes each token wait anyway, for its turn; where tokens wait a little longer
    and travel together, there are fewer turns to wait for. So the pause grows with the lag of the loop, and there is none as long as the loop keeps up.

    One for each process: it watches the loop as long as there are streams.

    Args:
        longest: Seconds between two messages of a stream at the most.
        clock: Seconds that never go back; None for the event loop's.
    """

    def __init__(self, *, longest: float = _LONGEST, clock: Callable[[], float] | None = None) -> None:
        self._longest = longest
        self._clock = clock
        self._streams = 0
        self._lag = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pause(self) -> float:
        """Seconds from one message of a stream to the next; 0 while the loop keeps up."""
        return max(0.0, min(self._longest, _A_STREAM * self._streams, _PAUSES_A_LAG * (self._lag - _STILL)))

    @contextmanager
    def stream(self) -> Generator[None]:
        """A stream runs within the block."""
        self._streams += 1
        if self._timer is None:
            self._wait()
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time() if self._clock is None else self._clock()
        if self._timer is not None:
            self._lag += _WEIGHT * (max(0.0, now - self._due) - self._lag)
        self._due = now + _TICK
        self._timer = loop.call_later(_TICK, self._wait)
