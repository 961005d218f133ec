"""Notices that nothing has happened for a while, at no cost for each thing that does happen."""

import asyncio
import time
from collections.abc import Callable


class IdleTimer:
    """Calls back once when the last activity lies longer back than it may.

    Activity costs nothing here: the owner keeps the time of its last activity in an attribute, and the timer looks at
    it only when it goes off. A timer that was set anew for each message would cost more than the message.
    """

    def __init__(self, seconds: float, last_activity: Callable[[], float], on_idle: Callable[[], object]) -> None:
        """Starts the timer.

        Args:
            seconds: How long nothing may happen.
            last_activity: Gives the time of the last activity on `time.monotonic()`; at present, while none is
                expected.
            on_idle: Called in the event loop when time is up.
        """
        self.seconds = seconds
        self.expired = False
        self._last_activity = last_activity
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(seconds, self._check)

    def _check(self) -> None:
        rest = self._last_activity() + self.seconds - time.monotonic()
        # Event loops round time down to a millisecond or so.
        if rest > 0.001:
            self._handle = self._loop.call_later(rest, self._check)
        else:
            self.expired = True
            self._on_idle()

    def stop(self) -> None:
        """Ends the timer; it does not call back any more."""
        self._handle.cancel()
