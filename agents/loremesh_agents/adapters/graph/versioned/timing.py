"""Time, as the versioned store measures it: each process on its own clock, of which only the rate matters."""

import asyncio
import time
from dataclasses import dataclass


class Clock:
    """The clock of this process; a test may have its own."""

    def now(self) -> float:
        """Seconds; it never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things last, in seconds.

    Attributes:
        write: Most time of a write, from its claim.
        lease: After so long without a decision others give a claimed version up. More than `write`.
        retention: What has ended is kept so long for those who began to read before.
        snapshot: Age at which a snapshot can be read no more. Less than `retention`.
        poll: Between two looks at what another process is about to decide.
        abort: For giving a version up, after the write's own time.
    """

    write: float = 30.0
    lease: float = 45.0
    retention: float = 60.0
    snapshot: float = 45.0
    poll: float = 0.05
    abort: float = 5.0
