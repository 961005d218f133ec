"""What clients of a graph store may see after what they have done: a small model, and a judgement of what they did see.

The writes of a collection form one sequence, its revisions. An operation whose client was killed before it heard of the outcome may be in that
sequence or not; one that was acknowledged is where the store said, and one that was refused is nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

State = Mapping[str, int]
"""For each document that is there, the number of the operation that wrote it."""


@dataclass(frozen=True)
class Operation:
    """A write or a delete of several documents.

    Attributes:
        number: Its own; in the texts of the documents that it writes.
        documents: Their ids.
        deletes: Whether it deletes them.
    """

    number: int
    documents: tuple[str, ...]
    deletes: bool = False

    def after(self, state: State) -> State:
        """The state that it makes of another."""
        kept = {name: number for name, number in state.items() if name not in self.documents}
        return kept if self.deletes else {**kept, **dict.fromkeys(self.documents, self.number)}


@dataclass
class Attempt:
    """An operation that somebody began; times are those of a clock that all share.

    Attributes:
        operation: Which one.
        began: When.
        ended: When its outcome was known; infinite where it never was.
        revision: That it made; 0 where it found nothing to change; None where it was not acknowledged.
        refused: Whether the store said that it has not happened.
    """

    operation: Operation
    began: float
    ended: float = float("inf")
    revision: int | None = None
    refused: bool = False

    @property
    def unknown(self) -> bool:
        """Whether it may have happened or not."""
        return self.revision is None and not self.refused


@dataclass(frozen=True)
class Look:
    """What a snapshot showed.

    Attributes:
        began: When it was opened.
        ended: When the last of it had been read.
        revision: Of the collection; 0 where it was not there.
        seen: The documents; None where a part of one was missing, or statistics disagreed with passages.
    """

    began: float
    ended: float
    revision: int
    seen: State | None


@dataclass
class Verdict:
    """What no store may show; each entry is a sentence.

    Attributes:
        lost: Acknowledged operations that a later snapshot did not have.
        torn: Snapshots that no sequence of whole operations explains, and revisions that nobody can have made.
        backwards: Snapshots older than another that had ended before they were opened.
    """

    lost: list[str] = field(default_factory=list[str])
    torn: list[str] = field(default_factory=list[str])
    backwards: list[str] = field(default_factory=list[str])


_Possible = tuple[frozenset[tuple[str, int]], frozenset[int]]
"""A state, and the numbers of the operations of unknown outcome that have happened in it."""


def judge(attempts: Sequence[Attempt], looks: Sequence[Look]) -> Verdict:
    """Compares what was seen with what the model allows."""
    verdict = Verdict()
    made: dict[int, Attempt] = {}
    for attempt in attempts:
        if attempt.revision:
            other = made.setdefault(attempt.revision, attempt)
            if other is not attempt:
                verdict.lost.append(f"{other.operation} and {attempt.operation} both made revision {attempt.revision}")
    for attempt in made.values():
        stale = [look for look in looks if look.began >= attempt.ended and look.revision < (attempt.revision or 0)]
        if stale:
            verdict.lost.append(f"{attempt.operation} made revision {attempt.revision}, later seen: {stale[0]}")
    for look in looks:
        before = max((other.revision for other in looks if other.ended <= look.began), default=0)
        if look.revision < before:
            verdict.backwards.append(f"revision {look.revision} after {before}")
    _explain(attempts, made, looks, verdict)
    return verdict


def _explain(attempts: Sequence[Attempt], made: Mapping[int, Attempt], looks: Sequence[Look], verdict: Verdict) -> None:
    """Looks for a sequence of operations that every snapshot fits in."""
    known = [(revision, attempt.ended) for revision, attempt in made.items()]
    known += [(look.revision, look.ended) for look in looks]
    unknown = [attempt for attempt in attempts if attempt.unknown]
    # What was known before an operation began came before it.
    floors = [max((revision for revision, at in known if at <= attempt.began), default=0) for attempt in unknown]
    possible: set[_Possible] = {(frozenset(), frozenset())}
    for revision in range(1, max((revision for revision, _ in known), default=0) + 1):
        happened = min(at for reached, at in known if reached >= revision)
        if revision in made:
            candidates = [made[revision].operation]
        else:
            candidates = [
                attempt.operation
                for attempt, floor in zip(unknown, floors, strict=True)
                if attempt.began < happened and floor < revision
            ]
        following = {
            (frozenset(operation.after(dict(state)).items()), used | {operation.number})
            for state, used in possible
            for operation in candidates
            if operation.number not in used
        }
        if not following:
            verdict.torn.append(f"nobody can have made revision {revision}")
            continue
        for look in looks:
            if look.revision == revision:
                fitting = {entry for entry in following if look.seen is not None and dict(entry[0]) == look.seen}
                following = fitting or following
                if not fitting:
                    verdict.torn.append(f"revision {revision} cannot show {look.seen}")
        possible = following
