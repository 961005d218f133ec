"""Values of set properties: facts, each stamped with the version of the write that added it.

A cell is `version:payload`. Where the payloads of a property add up, a cell may be a run, `version:~after-until:payload`: the sum of what the
committed versions above `after` up to `until` have added. So the cells that a run sums up can go, later, and their number stays small.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_RUN = "~"


@dataclass(frozen=True, slots=True)
class View:
    """What a reader takes for true.

    Attributes:
        version: The newest version that counts.
        aborted: Versions up to it that do not.
    """

    version: int
    aborted: frozenset[int]

    def counts(self, version: int) -> bool:
        """Whether what this version wrote is there."""
        return version <= self.version and version not in self.aborted


@dataclass(frozen=True, slots=True)
class Part:
    """A cell of a property whose payloads add up.

    Attributes:
        writer: Version of the write that added it.
        after: It sums up the versions above this one,
        until: up to this one.
        payload: What they add.
        value: The cell as it is stored.
    """

    writer: int
    after: int
    until: int
    payload: str
    value: str


def cell(version: int, payload: str) -> str:
    """The value of a cell."""
    return f"{version}:{payload}"


def run(version: int, parts: Sequence[Part], payload: str) -> str:
    """The value of a cell that sums up adjacent ones."""
    return f"{version}:{_RUN}{parts[0].after}-{parts[-1].until}:{payload}"


def writer_of(value: str) -> int:
    """The version of the write that added a cell."""
    return int(value.partition(":")[0])


def newest(values: Iterable[str], view: View) -> str | None:
    """The payload of the newest cell that counts."""
    found = max(((writer, value) for value in values if view.counts(writer := writer_of(value))), default=None)
    return found[1].partition(":")[2] if found is not None else None


def outdated(values: Iterable[str], view: View, horizon: int) -> list[str]:
    """Cells of which only the newest counts that no reader needs any more.

    Args:
        values: The cells.
        view: Of the writer.
        horizon: Every reader that is still there sees at least this version.
    """
    writers = {value: writer_of(value) for value in values}
    kept = max((writer for writer in writers.values() if writer <= horizon and view.counts(writer)), default=0)
    return [
        value for value, writer in writers.items() if writer <= horizon and (writer < kept or writer in view.aborted)
    ]


def parts(values: Iterable[str], view: View) -> list[Part]:
    """The cells that add up to the value that a reader sees, in the order of versions."""
    return _covering(part for part in map(_parse, values) if view.counts(part.writer))


def payloads(values: Sequence[str], view: View) -> list[str]:
    """The payloads of the cells that add up to the value that a reader sees, where their order means nothing."""
    found: list[tuple[int, str]] = []
    runs: list[Part] = []
    for value in values:
        stamp, _, payload = value.partition(":")
        if view.counts(writer := int(stamp)):
            if payload.startswith(_RUN):
                runs.append(_parse(value))
            else:
                found.append((writer, payload))
    if not runs:
        return [payload for _, payload in found]
    # Faster than `parts`, of which nearly all are covered.
    chosen = _covering(runs)
    summed = [part.payload for part in chosen]
    return summed + [payload for writer, payload in found if not any(p.after < writer <= p.until for p in chosen)]


def summed_up(values: Iterable[str], view: View, horizon: int) -> list[str]:
    """Cells whose payloads add up that no reader needs any more: each reader sees a run that sums them up, or they never counted.

    Args:
        values: The cells.
        view: Of the writer.
        horizon: Every reader that is still there sees at least this version.
    """
    found = [_parse(value) for value in values]
    kept = {part.value for part in parts(values, View(horizon, view.aborted))} if horizon else set[str]()
    return [
        part.value
        for part in found
        if part.writer <= horizon and (part.writer in view.aborted or part.value not in kept)
    ]


def mergeable(values: Iterable[str], view: View, horizon: int) -> list[Part]:
    """Adjacent cells that are worth a run, none that a reader may still need apart; empty where there are none.

    Each is at most twice as large as those after it together, so that a cell is rewritten a number of times that grows with the logarithm of
    what the property holds.
    """
    old = [part for part in parts(values, view) if part.until <= horizon]
    size, start = 0, len(old)
    while start and (not size or len(old[start - 1].payload) <= 2 * size):
        start -= 1
        size += len(old[start].payload)
    return old[start:] if len(old) - start > 1 else []


def _covering(counting: Iterable[Part]) -> list[Part]:
    """Those of the parts that together are all, in the order of versions."""
    # Runs are nested or apart, since each writer has seen those of all before: the widest come first and cover the others.
    chosen: list[Part] = []
    until = 0
    for part in sorted(counting, key=lambda part: (part.after, -part.until, part.writer)):
        if part.until > until:
            chosen.append(part)
            until = part.until
    return chosen


def _parse(value: str) -> Part:
    stamp, _, payload = value.partition(":")
    writer = int(stamp)
    if not payload.startswith(_RUN):
        return Part(writer, writer - 1, writer, payload, value)
    spanned, _, payload = payload[1:].partition(":")
    after, _, until = spanned.partition("-")
    return Part(writer, int(after), int(until), payload, value)
