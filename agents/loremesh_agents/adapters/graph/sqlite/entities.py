"""Entities, who bears their names and who mentions them, in one write transaction."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loremesh_agents.adapters.graph.filters import PhraseFilter, TitleFilter
from loremesh_agents.adapters.graph.sqlite.audiences import AudienceChanges
from loremesh_agents.adapters.graph.sqlite.rows import execute_rows
from loremesh_agents.adapters.graph.sqlite.schema import CAPITALISED, TITLED, full_text_table, next_id
from loremesh_agents.domain.document import PassageWrite, Title
from loremesh_agents.domain.mentions import is_matchable

_HIGHEST_ID = (1 << 63) - 1


@dataclass(slots=True)
class _Entity:
    id: int
    titles: int
    stored: bool


class EntityChanges:
    """What a transaction changes of a collection's entities and of the edges to them.

    First `remove` and `insert`, then `settle`; any number of times.

    Args:
        connection: Within the transaction.
        collection: Id of the collection.
        audiences: Takes the same changes apart by readers.
        titles: The titles that the collection has.
        phrases: What is in the newer of its passages.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        collection: int,
        audiences: AudienceChanges,
        titles: TitleFilter,
        phrases: PhraseFilter,
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._audiences = audiences
        self._title_filter = titles
        self._phrase_filter = phrases
        self._next = next_id(connection, "entity")
        self._known: dict[str, _Entity] = {}
        self._mentions: Counter[int] = Counter()
        self._titles: Counter[int] = Counter()
        self._inserted: list[tuple[int, PassageWrite]] = []
        self.added = 0

    def remove(self, refs: Sequence[int]) -> None:
        """Takes away the edges of passages."""
        group = json.dumps(list(refs))
        for table, changes in (("mention", self._mentions), ("title", self._titles)):
            rows = self._connection.execute(
                f"SELECT x.entity, count(*) FROM json_each(?) j CROSS JOIN {table} x ON x.passage = j.value GROUP BY x.entity",
                (group,),
            )
            for entity, count in rows.fetchall():
                changes[entity] -= count
            self._connection.execute(f"DELETE FROM {table} WHERE passage IN (SELECT value FROM json_each(?))", (group,))

    def insert(self, passages: Sequence[tuple[int, PassageWrite]]) -> None:
        """Adds the edges of new passages, given with their ids, which are higher than all before."""
        self._resolve(
            {title.key for _, write in passages for title in write.passage.titles}.union(
                *(write.spans.capitalised for _, write in passages)
            )
        )
        rows: list[tuple[int, int, float, str]] = []
        for ref, write in passages:
            for title in _best(write.passage.titles).values():
                entity = self._known[title.key]
                rows.append((entity.id, ref, title.weight, title.name))
                self._titles[entity.id] += 1
        execute_rows(self._connection, "INSERT INTO title VALUES {rows}", rows)
        self._audiences.title([(entity, ref) for entity, ref, _, _ in rows])
        self._title_filter.add({title.key for _, write in passages for title in write.passage.titles})
        self._inserted += passages

    def settle(self) -> None:
        """Brings mentions by title and all counts in line with the titles as they are now."""
        became, ceased = self._turned()
        self._forget_titles(ceased)
        self._mention_in_new()
        newer = self._phrase_filter.may_hold([key for key, _ in became])
        for (key, entity), among_newer in zip(became, newer, strict=True):
            if among_newer or self._phrase_filter.since:
                self._mention_in_old(key, entity, among_newer=among_newer)
        self._store_counts()
        if self._inserted:
            self._phrase_filter.add([write.spans for _, write in self._inserted])
        self._mentions.clear()
        self._titles.clear()
        self._inserted.clear()

    def _resolve(self, keys: Iterable[str]) -> None:
        """Makes all these entities known; those that the collection does not have are made."""
        missing = [key for key in keys if key not in self._known]
        self._look_up(missing)
        for key in missing:
            if key not in self._known:
                self._known[key] = _Entity(self._next, 0, stored=False)
                self._next += 1

    def _look_up(self, keys: Sequence[str]) -> None:
        rows = self._connection.execute(
            "SELECT e.key, e.id, e.title_count FROM json_each(?) j CROSS JOIN entity e WHERE e.collection = ? AND e.key = j.value",
            (json.dumps(list(keys)), self._collection),
        )
        self._known.update((key, _Entity(entity, titles, stored=True)) for key, entity, titles in rows.fetchall())

    def _turned(self) -> tuple[list[tuple[str, int]], list[int]]:
        """The entities whose name has become a title, and those whose name has ceased to be one."""
        unknown = set(self._titles).difference(entity.id for entity in self._known.values())
        rows = self._connection.execute(
            "SELECT e.key FROM json_each(?) j JOIN entity e ON e.id = j.value", (json.dumps(list(unknown)),)
        )
        self._look_up([key for (key,) in rows.fetchall()])
        became: list[tuple[str, int]] = []
        ceased: list[int] = []
        for key, entity in self._known.items():
            change = self._titles[entity.id]
            if change and not entity.titles and is_matchable(key):
                became.append((key, entity.id))
            elif change and entity.titles and not entity.titles + change:
                ceased.append(entity.id)
            entity.titles += change
        return became, ceased

    def _forget_titles(self, entities: Iterable[int]) -> None:
        for entity in entities:
            self._audiences.forget_title(entity)
            self._mentions[entity] -= self._connection.execute(
                "DELETE FROM mention WHERE entity = ? AND kind = ?", (entity, TITLED)
            ).rowcount
            self._connection.execute("UPDATE mention SET kind = ? WHERE entity = ?", (CAPITALISED, entity))

    def _mention_in_new(self) -> None:
        if not self._inserted:
            return
        proposals = self._title_filter.proposals([write.spans for _, write in self._inserted])
        self._look_up([key for key in set[str]().union(*proposals) if key not in self._known])
        titled = {key: entity.id for key, entity in self._known.items() if entity.titles and is_matchable(key)}
        rows: list[tuple[int, int, int]] = []
        for (ref, write), proposed in zip(self._inserted, proposals, strict=True):
            kinds = {self._known[key].id: CAPITALISED for key in write.spans.capitalised}
            for key in proposed & titled.keys():
                kinds[titled[key]] = kinds.get(titled[key], 0) | TITLED
            rows += [(entity, ref, kind) for entity, kind in kinds.items()]
            self._mentions.update(kinds.keys())
        rows.sort()
        execute_rows(self._connection, "INSERT INTO mention VALUES {rows}", rows)
        self._audiences.mention(rows)

    def _mention_in_old(self, key: str, entity: int, *, among_newer: bool) -> None:
        """Finds a new title in the passages that were there before."""
        phrase = '"' + key.replace('"', '""') + '"'
        column = "words" if " " in key else "names"
        table = full_text_table(self._collection)
        before = self._inserted[0][0] if self._inserted else _HIGHEST_ID
        if not among_newer:
            before = min(before, self._phrase_filter.since)
        rows = self._connection.execute(
            f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid < ?", (f"{column} : {phrase}", before)
        )
        found = {ref for (ref,) in rows.fetchall()}
        if not found:
            return
        known = {
            ref
            for (ref,) in self._connection.execute("SELECT passage FROM mention WHERE entity = ?", (entity,)).fetchall()
        }
        self._mentions[entity] += len(found - known)
        self._audiences.mention([(entity, ref, TITLED) for ref in found - known])
        execute_rows(
            self._connection,
            "INSERT INTO mention VALUES {rows} ON CONFLICT DO UPDATE SET kind = kind | excluded.kind",
            [(entity, ref, TITLED) for ref in found],
        )

    def _store_counts(self) -> None:
        made = [(key, entity) for key, entity in self._known.items() if not entity.stored]
        execute_rows(
            self._connection,
            "INSERT INTO entity (id, collection, key, mention_count, title_count) VALUES {rows}",
            [
                (entity.id, self._collection, key, self._mentions[entity.id], self._titles[entity.id])
                for key, entity in made
            ],
        )
        new = {entity.id for _, entity in made}
        changed = {entity for entity in {*self._mentions, *self._titles} if entity not in new}
        execute_rows(
            self._connection,
            "UPDATE entity SET mention_count = mention_count + c.column2, title_count = title_count + c.column3"
            " FROM (VALUES {rows}) c WHERE entity.id = c.column1",
            [(entity, self._mentions[entity], self._titles[entity]) for entity in sorted(changed)],
        )
        fewer = [entity for entity in changed if self._mentions[entity] < 0 or self._titles[entity] < 0]
        gone = self._connection.execute(
            "DELETE FROM entity WHERE id IN (SELECT value FROM json_each(?)) AND mention_count = 0 AND title_count = 0"
            " RETURNING key",
            (json.dumps(fewer),),
        ).fetchall()
        for (key,) in gone:
            self._known.pop(key, None)
        for _, entity in made:
            entity.stored = True
        self.added += len(made) - len(gone)


def _best(titles: Iterable[Title]) -> Mapping[str, Title]:
    """The titles by key, of each the one with the greatest weight."""
    best: dict[str, Title] = {}
    for title in titles:
        if title.key not in best or best[title.key].weight < title.weight:
            best[title.key] = title
    return best
