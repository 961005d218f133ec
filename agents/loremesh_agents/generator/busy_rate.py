"""How fast an engine gets done with tokens while there is work."""

import math
import time
from collections.abc import Callable

_MEMORY_SECONDS = 10.0


class BusyRate:
    """Tokens a second, an exponentially weighted mean over the last ten seconds or so in which there was work.

    Time without work does not count: it says nothing about what the engine can do.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._busy = False
        self._tokens = 0.0
        self._seconds = 0.0

    def observe(self, *, busy: bool, done: int = 0) -> None:
        """Takes what has happened.

        Args:
            busy: Whether there is work from now on.
            done: Tokens that are done now.
        """
        now = self._clock()
        if self._busy:
            kept = math.exp((self._last - now) / _MEMORY_SECONDS)
            self._tokens *= kept
            self._seconds = self._seconds * kept + _MEMORY_SECONDS * (1 - kept)
        self._last = now
        self._busy = busy
        self._tokens += done

    @property
    def per_second(self) -> float | None:
        """Tokens a second; None as long as nothing was done."""
        return self._tokens / self._seconds if self._tokens and self._seconds else None
