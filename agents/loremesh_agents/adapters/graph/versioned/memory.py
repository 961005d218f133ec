"""What a process remembers from one write to the next, only to read less."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from loremesh_agents.adapters.graph.filters import PhraseFilter, TitleFilter
from loremesh_agents.adapters.graph.versioned.totals import EntityTotals

_MOST_ENTITIES = 200_000
_MOST_BUCKETS = 64 * 256
_FILTERED_COLLECTIONS = 4


@dataclass(slots=True)
class Filters:
    """What may be in the texts of a collection.

    Attributes:
        revision: Of the collection whose titles they know.
        titles: Its titles.
        phrases: What is in the newer of its passages.
    """

    revision: int
    titles: TitleFilter
    phrases: PhraseFilter


class WriterMemory:
    """What is known of the newest state, as long as this process has written it."""

    def __init__(self) -> None:
        self.version = 0
        self.buckets: dict[str, int] = {}
        self._entities: OrderedDict[str, tuple[EntityTotals, int]] = OrderedDict()
        self._complete: dict[str, int] = {}
        self._filters: dict[str, Filters] = {}

    def begin(self, head: int) -> None:
        """To be called when a write has its turn, with the version that it follows."""
        if head != self.version:
            self.forget()

    def forget(self) -> None:
        """Forgets all but the filters, which know of which revision they are."""
        self._entities.clear()
        self._complete.clear()
        self.buckets.clear()

    def created(self, uid: str, version: int) -> None:
        """All that a collection has will have been written by this process."""
        self._complete[uid] = version

    def created_at(self, uid: str) -> int | None:
        """The version that created a collection, if all that the collection has is remembered."""
        return self._complete.get(uid)

    def entity(self, vertex: str) -> EntityTotals | None:
        """What is counted of an entity, or of an address of which nothing is counted here; None where it is not remembered."""
        found = self._entities.get(vertex)
        if found is None:
            return None
        self._entities.move_to_end(vertex)
        return found[0]

    def remember(self, vertices: Iterable[tuple[str, EntityTotals, int]]) -> None:
        """Takes entities and addresses as they are now: id, totals, and how many cells they have gained since these were merged."""
        for vertex, totals, cells in vertices:
            self._entities[vertex] = (totals, cells)
            self._entities.move_to_end(vertex)
        while len(self._entities) > _MOST_ENTITIES:
            self._entities.popitem(last=False)
            self._complete.clear()
        if len(self.buckets) > _MOST_BUCKETS:
            self.buckets.clear()

    def cells(self, vertex: str) -> int:
        """How many cells an entity or address has gained since they were merged, as far as known."""
        found = self._entities.get(vertex)
        return found[1] if found is not None else 0

    def filters(self, uid: str) -> Filters | None:
        """The filters of a collection."""
        return self._filters.get(uid)

    def keep_filters(self, uid: str, filters: Filters) -> None:
        """Takes the filters of a collection."""
        self._filters.pop(uid, None)
        self._filters[uid] = filters
        while len(self._filters) > _FILTERED_COLLECTIONS:
            del self._filters[next(iter(self._filters))]
