"""What is counted of an entity or an address: cells whose numbers add up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loremesh_agents.adapters.graph.versioned.cells import View, payloads


@dataclass(frozen=True, slots=True)
class EntityTotals:
    """What is counted of an entity, or by how much that changes.

    Attributes:
        capitalised: Passages that mention it by a capitalised span.
        titled: Other passages in which it occurs: these mention it only while it is a title.
        titles: Passages that bear it as a title.
        known: Whether it has ever been a title: from then on its edges are complete. 0 or 1.
    """

    capitalised: int = 0
    titled: int = 0
    titles: int = 0
    known: int = 0

    @classmethod
    def total(cls, payloads: Iterable[str]) -> "EntityTotals":
        """What cells add up to."""
        rows = [map(int, payload.split(",")) for payload in payloads]
        if len(rows) == 1:
            return cls(*rows[0])
        return cls(*map(sum, zip(*rows, strict=True))) if rows else NOTHING

    @classmethod
    def seen(cls, values: Sequence[str], view: View) -> "EntityTotals":
        """What a reader sees of these cells."""
        return cls.total(payloads(values, view))

    def plus(self, other: "EntityTotals") -> "EntityTotals":
        """The sum."""
        return EntityTotals(
            self.capitalised + other.capitalised,
            self.titled + other.titled,
            self.titles + other.titles,
            self.known + other.known,
        )

    def encoded(self) -> str:
        """As text."""
        return f"{self.capitalised},{self.titled},{self.titles},{self.known}"

    @property
    def mentions(self) -> int:
        """Passages that mention it."""
        return self.capitalised + (self.titled if self.titles else 0)

    @property
    def exists(self) -> bool:
        """Whether any passage mentions or bears it."""
        return bool(self.capitalised or self.titles)

    @property
    def size(self) -> int:
        """Edges that lead to it from passages that are there, whether they count or not."""
        return self.capitalised + self.titled


NOTHING = EntityTotals()


def links_seen(values: Sequence[str], view: View) -> int:
    """How many passages a reader sees link to an address, of the cells of its count."""
    return sum(map(int, payloads(values, view)))
