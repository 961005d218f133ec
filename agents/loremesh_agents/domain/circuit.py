"""Circuit breakers: what fails again and again is left alone for a while (Nygard, "Release It!")."""

import time
from collections.abc import Callable

FAILURES = 3
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


class Circuit:
    """Whether something outside may be called.

    It is open after three failures in a row, for a second at first and twice as long each time, half a minute at most. Then one call is let through: where it succeeds, all are.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._until = 0.0
        self._trying = False

    @property
    def allows(self) -> bool:
        """Whether a call may be made now."""
        if self._failures < FAILURES:
            return True
        return not self._trying and self._clock() >= self._until

    def begin(self) -> None:
        """A call begins."""
        self._trying = self._failures >= FAILURES

    def succeeded(self) -> None:
        """A call has shown that it works."""
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._trying = False

    def failed(self) -> None:
        """A call has shown that it does not work."""
        self._failures += 1
        self._trying = False
        if self._failures >= FAILURES:
            self._until = self._clock() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def left(self) -> None:
        """A call ended before it showed anything."""
        self._trying = False
