"""The evidence and the numbered sources of one answer, over all its retrievals."""

from dataclasses import replace

from loremesh_agents.domain.answer import Source
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.evidence import Evidence

MOST_SOURCES = 100
"""Sources that a generator takes (`GenerateRequest.sources`)."""


class CitationTable:
    """Numbers that stay: evidence `E1`, `E2`, ... and sources 1, 2, ... go on from one retrieval to the next.

    Attributes:
        evidence_by_number: Evidence ids of each source, by its number; grows with the table.
    """

    def __init__(self) -> None:
        self._passages: dict[tuple[str, str], str] = {}
        self._evidence = 0
        self._sources: list[Source] = []
        self.evidence_by_number: dict[int, tuple[str, ...]] = {}

    @property
    def evidence_count(self) -> int:
        """Pieces of evidence, each once."""
        return self._evidence

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources in the order of their numbers."""
        return tuple(self._sources)

    def named(self, evidence: Evidence) -> tuple[Evidence, bool]:
        """The evidence with its id in this answer, and whether it is new. A passage that was found before has the id that it had."""
        source = evidence.source
        key = (source.collection, source.passage_id) if isinstance(source, Passage) else None
        known = self._passages.get(key) if key is not None else None
        if known is not None:
            return replace(evidence, evidence_id=known), False
        self._evidence += 1
        evidence_id = f"E{self._evidence}"
        if key is not None:
            self._passages[key] = evidence_id
        return replace(evidence, evidence_id=evidence_id), True

    def number_of(self, evidence_id: str) -> int | None:
        """The first source that holds the evidence; None where none does."""
        return next((number for number, ids in self.evidence_by_number.items() if evidence_id in ids), None)

    def add(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """Adds sources under the next numbers, as many as there is room for.

        Returns:
            Those that were added, with their numbers here.
        """
        first = len(self._sources) + 1
        room = MOST_SOURCES - len(self._sources)
        added = tuple(replace(source, number=number) for number, source in enumerate(sources[:room], first))
        self._sources += added
        self.evidence_by_number.update((source.number, source.evidence_ids) for source in added)
        return added
