"""How long the stages of an answer took."""

import time


class Stopwatch:
    """Starts when it is made. A stage that comes again, as in a second round, adds to its time."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._timings: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """All since the lap before was for this stage."""
        now = time.monotonic()
        self._timings[stage] = self._timings.get(stage, 0.0) + now - self._last
        self._last = now

    def first_token(self) -> None:
        """The first token of the answer is here; later ones do not count."""
        self._timings.setdefault("first_token", time.monotonic() - self._began)

    def timings(self) -> dict[str, float]:
        """Seconds by stage, in the order in which they first came, with the total."""
        return {**self._timings, "total": time.monotonic() - self._began}
