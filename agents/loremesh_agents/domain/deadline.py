"""The time that is left for a query, passed down explicitly and spent as a budget."""

import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """A point on the monotonic clock after which an answer is of no use to the caller.

    Attributes:
        at: Seconds on `time.monotonic()`.
    """

    at: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return time.monotonic() >= self.at

    def shrink(self, *, reserve: float = 0.0, cap: float | None = None) -> Self:
        """The deadline of a downstream call: `min(cap, remaining - reserve)` seconds from now.

        Args:
            reserve: Seconds kept back for what follows the call (the way back to the caller).
            cap: Most seconds that the call may take, None for no limit of its own.
        """
        at = self.at - reserve
        if cap is not None:
            at = min(at, time.monotonic() + cap)
        return type(self)(at)

    def fraction(self, share: float) -> Self:
        """The deadline of optional work that may use that share (0 to 1) of what is left."""
        now = time.monotonic()
        return type(self)(now + max(0.0, self.at - now) * share)
