"""Reading one state of some collections within one read transaction."""

import asyncio
import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as Group
from dataclasses import dataclass
from typing import Any, TypeVar

from loremesh_agents.adapters.graph.sqlite.connection import Connections
from loremesh_agents.adapters.graph.sqlite.features import CurrentVectors, FeatureCache
from loremesh_agents.adapters.graph.sqlite.schema import CAPITALISED
from loremesh_agents.adapters.graph.sqlite.statistics import EntityRow, Statistics
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import (
    EntityStatistics,
    EntryPoints,
    Expansion,
    MentionEdge,
    PassageFeatures,
    PassageRef,
    ReferenceEdge,
    TitleEdge,
)
from loremesh_agents.domain.revision import CollectionRevision

_Result = TypeVar("_Result")

_NAMING_TITLES = 16
_MOST_REFERENCES = 64


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which documents may be read, as a condition on the table `document` under the name `d`.

    Attributes:
        condition: SQL with parameters; empty where every document may be read.
        parameters: Their values.
    """

    condition: str
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, principal: Principal, kept: MetadataFilter, *, restricted: bool) -> "Visibility":
        """The condition for a principal and a filter.

        Args:
            principal: Who reads.
            kept: Which documents are asked for.
            restricted: Whether any document of the collections has readers.
        """
        conditions: list[str] = []
        parameters: list[str] = []
        if restricted:
            conditions.append(
                "(NOT d.restricted OR EXISTS (SELECT 1 FROM document_reader r WHERE r.document = d.id"
                " AND r.reader IN (SELECT value FROM json_each(?))))"
            )
            parameters.append(json.dumps(sorted(principal.groups)))
        for condition in kept.conditions:
            conditions.append(
                "EXISTS (SELECT 1 FROM document_metadata m WHERE m.document = d.id AND m.key = ?"
                " AND m.value IN (SELECT value FROM json_each(?)))"
            )
            parameters += [condition.key, json.dumps(sorted(condition.any_of))]
        return cls(" AND ".join(conditions), tuple(parameters))

    def passage(self, column: str) -> tuple[str, tuple[str, ...]]:
        """The condition, led by AND, on a column that holds a passage's id; with its parameters."""
        if not self.condition:
            return "", ()
        documents = "SELECT 1 FROM passage vp JOIN document d ON d.id = vp.document"
        return f" AND EXISTS ({documents} WHERE vp.id = {column} AND {self.condition})", self.parameters


class SqliteSnapshot:
    """See `ports.graph.GraphSnapshot`. It has one connection, for which its reads take turns."""

    def __init__(
        self,
        connections: Connections,
        connection: sqlite3.Connection,
        collections: Mapping[int, CollectionRevision],
        vectors: Mapping[int, CurrentVectors],
        *,
        visibility: Visibility,
        statistics: Statistics,
        cache: FeatureCache,
    ) -> None:
        self._connections = connections
        self._connection = connection
        self._turn = asyncio.Lock()
        self._collections = collections
        self._vectors = vectors
        self._ids = json.dumps(sorted(collections))
        self._visibility = visibility
        self._statistics = statistics
        self._cache = cache
        self._term_ids: dict[str, int | None] = {}

    @property
    def revisions(self) -> tuple[CollectionRevision, ...]:
        """The states that are read."""
        return tuple(self._collections.values())

    @property
    def embedding_models(self) -> Mapping[str, str]:
        """The models of the vectors."""
        return {name: model for name, model, _ in self._vectors.values()}

    @property
    def selective(self) -> bool:
        """Whether some passages may be hidden."""
        return bool(self._visibility.condition)

    async def readable(self, refs: Sequence[PassageRef], *, deadline: Deadline) -> tuple[PassageRef, ...]:
        """See the port."""
        found = set(await self._read(lambda connection: self._readable(connection, refs), deadline))
        return tuple(ref for ref in refs if ref in found)

    async def _read(self, work: Callable[[sqlite3.Connection], _Result], deadline: Deadline) -> _Result:
        async with self._turn:
            return await self._connections.read(self._connection, work, deadline)

    async def enter(
        self,
        *,
        terms: Sequence[str] = (),
        entities: Group[str] = (),
        passages: Sequence[tuple[str, str]] = (),
        title_limit: int = 0,
        deadline: Deadline,
    ) -> EntryPoints:
        """See the port."""

        def work(connection: sqlite3.Connection) -> EntryPoints:
            rows = self._statistics.entities(connection, entities)
            titles, names = self._titles(connection, rows, title_limit)
            return EntryPoints(
                self._statistics.terms(connection, terms),
                _statistics_of(rows, names),
                tuple(titles),
                self._locate(connection, passages),
            )

        return await self._read(work, deadline)

    async def features(self, refs: Group[PassageRef], terms: Sequence[str], *, deadline: Deadline) -> PassageFeatures:
        """See the port."""

        def work(connection: sqlite3.Connection) -> PassageFeatures:
            return self._features(connection, self._readable(connection, refs), terms)

        return await self._read(work, deadline)

    async def expand(
        self,
        seeds: Sequence[PassageRef],
        terms: Sequence[str],
        *,
        entities: Group[str],
        known: Group[PassageRef],
        mention_limit: int,
        title_limit: int,
        deadline: Deadline,
    ) -> Expansion:
        """See the port."""

        def work(connection: sqlite3.Connection) -> Expansion:
            readable = self._readable(connection, seeds)
            seed_mentions, mentioned = self._mentions_of(connection, readable)
            seed_titles, borne = self._titles_of(connection, readable)
            near = {*mentioned, *borne}
            keys = {row.key for row in near}
            if len(self._collections) == 1:
                rows = [*near, *self._statistics.entities(connection, set(entities) - keys)]
                rows.sort(key=lambda row: row.key)
            else:
                # Other collections may know the same entities.
                rows = self._statistics.entities(connection, keys.union(entities))
            titles, names = self._titles(connection, rows, title_limit)
            found = _statistics_of(rows, names)
            followed = [row for row in rows if found[row.key].mention_count <= mention_limit]
            mentions = self._mentions(connection, followed)
            references = self._references(connection, readable)
            reached = {edge.passage for edge in titles}.union(*mentions.values())
            reached |= {edge.target for edge in references}
            features = self._features(connection, reached.difference(known), terms)
            return Expansion(
                found,
                tuple(seed_mentions),
                tuple(seed_titles),
                tuple(titles),
                mentions,
                tuple(references),
                features,
            )

        return await self._read(work, deadline)

    async def fetch(self, refs: Sequence[PassageRef], *, deadline: Deadline) -> Mapping[PassageRef, Passage]:
        """See the port."""

        def work(connection: sqlite3.Connection) -> dict[PassageRef, Passage]:
            condition, parameters = self._visibility.passage("p.id")
            rows = connection.execute(
                f"{PASSAGE_COLUMNS} WHERE p.id IN (SELECT value FROM json_each(?))"
                f" AND p.collection IN (SELECT value FROM json_each(?)){condition}",
                (json.dumps(list(refs)), self._ids, *parameters),
            ).fetchall()
            return {
                PassageRef(row[0]): passage for row, passage in zip(rows, passages_of(connection, rows), strict=True)
            }

        return await self._read(work, deadline)

    def _features(
        self, connection: sqlite3.Connection, refs: Group[PassageRef], terms: Sequence[str]
    ) -> PassageFeatures:
        if not self._term_ids.keys() >= set(terms):
            rows = connection.execute(
                "SELECT term, id FROM term WHERE term IN (SELECT value FROM json_each(?))", (json.dumps(list(terms)),)
            )
            self._term_ids = {**dict.fromkeys(terms), **dict(rows.fetchall())}
        columns = [self._term_ids[term] for term in terms]
        return self._cache.features(connection, sorted(refs), columns, self._vectors)

    def _locate(
        self, connection: sqlite3.Connection, passages: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], PassageRef]:
        ids = {revision.collection: row for row, revision in self._collections.items()}
        condition, parameters = self._visibility.passage("p.id")
        found: dict[tuple[str, str], PassageRef] = {}
        for collection, passage_id in passages:
            document_id, _, ordinal = passage_id.rpartition("#")
            if collection not in ids or not ordinal.isascii() or not ordinal.isdigit() or len(ordinal) > 9:
                continue
            row = connection.execute(
                "SELECT p.id FROM passage p JOIN document o ON o.id = p.document"
                f" WHERE o.collection = ? AND o.document_id = ? AND p.ordinal = ?{condition}",
                (ids[collection], document_id, int(ordinal), *parameters),
            ).fetchone()
            if row is not None:
                found[collection, passage_id] = PassageRef(row[0])
        return found

    def _readable(self, connection: sqlite3.Connection, refs: Group[PassageRef]) -> list[PassageRef]:
        condition, parameters = self._visibility.passage("p.id")
        rows = connection.execute(
            "SELECT p.id FROM json_each(?) j CROSS JOIN passage p ON p.id = j.value"
            f" WHERE p.collection IN (SELECT value FROM json_each(?)){condition}",
            (json.dumps(list(refs)), self._ids, *parameters),
        )
        return [PassageRef(row[0]) for row in rows.fetchall()]

    def _titles(
        self, connection: sqlite3.Connection, rows: Sequence[EntityRow], limit: int
    ) -> tuple[list[TitleEdge], dict[int, str]]:
        """The edges of entities to passages that bear their names, and how passages write these names, by entity.

        Of an entity with many titles the first ones give the name.
        """
        condition, parameters = self._visibility.passage("t.passage")
        few = {entity: key for _, entity, key, _, titles in rows if 0 < titles <= _NAMING_TITLES}
        found = connection.execute(
            "SELECT t.entity, t.passage, t.weight, t.name FROM json_each(?) j CROSS JOIN title t"
            f" WHERE t.entity = j.value{condition}",
            (json.dumps(list(few)), *parameters),
        ).fetchall()
        names: dict[int, str] = {}
        for entity, _, _, name in found:
            if entity not in names or name < names[entity]:
                names[entity] = name
        beyond = {entity for _, entity, _, _, titles in rows if titles > limit}
        edges = [
            TitleEdge(few[entity], PassageRef(passage), weight)
            for entity, passage, weight, _ in found
            if entity not in beyond
        ]
        for _, entity, key, _, titles in rows:
            if titles > _NAMING_TITLES:
                (name,) = connection.execute(
                    f"SELECT min(name) FROM (SELECT t.name FROM title t WHERE t.entity = ?{condition} ORDER BY t.passage LIMIT ?)",
                    (entity, *parameters, _NAMING_TITLES),
                ).fetchone()
                if name is not None:
                    names[entity] = name
            if titles > min(limit, _NAMING_TITLES):
                best = connection.execute(
                    f"SELECT t.passage, t.weight FROM title t WHERE t.entity = ?{condition}"
                    " ORDER BY t.weight DESC, t.passage LIMIT ?",
                    (entity, *parameters, limit),
                )
                edges += [TitleEdge(key, PassageRef(passage), weight) for passage, weight in best.fetchall()]
        return edges, names

    def _hidden_titles(self, connection: sqlite3.Connection, entities: Group[int]) -> set[int]:
        """Those of the entities whose titles are all hidden: nothing is mentioned because of these."""
        condition, parameters = self._visibility.passage("t.passage")
        if not condition:
            return set()
        shown = connection.execute(
            "SELECT j.value FROM json_each(?) j WHERE EXISTS"
            f" (SELECT 1 FROM title t WHERE t.entity = j.value{condition})",
            (json.dumps(list(entities)), *parameters),
        )
        return set(entities).difference(entity for (entity,) in shown.fetchall())

    def _mentions_of(
        self, connection: sqlite3.Connection, seeds: Group[PassageRef]
    ) -> tuple[list[MentionEdge], list[EntityRow]]:
        """What seeds mention, as far as it leads on; with the entities."""
        rows = connection.execute(
            "SELECT m.passage, m.kind, e.collection, e.id, e.key, e.mention_count, e.title_count FROM json_each(?) s"
            " CROSS JOIN mention m ON m.passage = s.value JOIN entity e ON e.id = m.entity"
            " WHERE e.mention_count > 1 OR e.title_count > 0",
            (json.dumps(list(seeds)),),
        ).fetchall()
        hidden = self._hidden_titles(connection, {row[3] for row in rows if not row[1] & CAPITALISED})
        rows = [row for row in rows if row[1] & CAPITALISED or row[3] not in hidden]
        counted = self._statistics.counted(connection, [EntityRow(*row) for row in {row[2:] for row in rows}])
        leading = {row.id: row for row in counted if row.mentions > 1 or row.titles > 0}
        edges = [MentionEdge(row[4], PassageRef(row[0])) for row in rows if row[3] in leading]
        return edges, list(leading.values())

    def _titles_of(
        self, connection: sqlite3.Connection, seeds: Group[PassageRef]
    ) -> tuple[list[TitleEdge], list[EntityRow]]:
        """What seeds bear the names of; with the entities."""
        rows = connection.execute(
            "SELECT t.passage, t.weight, e.collection, e.id, e.key, e.mention_count, e.title_count FROM json_each(?) s"
            " CROSS JOIN title t ON t.passage = s.value JOIN entity e ON e.id = t.entity",
            (json.dumps(list(seeds)),),
        ).fetchall()
        edges = [TitleEdge(row[4], PassageRef(row[0]), row[1]) for row in rows]
        return edges, self._statistics.counted(connection, [EntityRow(*row) for row in {row[2:] for row in rows}])

    def _mentions(self, connection: sqlite3.Connection, rows: Sequence[EntityRow]) -> dict[str, Sequence[PassageRef]]:
        condition, parameters = self._visibility.passage("m.passage")
        keys = {entity: key for _, entity, key, _, _ in rows}
        hidden = self._hidden_titles(connection, keys)
        if hidden:
            condition += f" AND (m.kind & {CAPITALISED} OR m.entity NOT IN (SELECT value FROM json_each(?)))"
            parameters = (*parameters, json.dumps(list(hidden)))
        # Two columns of JSON: the driver takes a microsecond for each row.
        ((entities, passages),) = connection.execute(
            "SELECT json_group_array(m.entity), json_group_array(m.passage) FROM json_each(?) j"
            f" CROSS JOIN mention m WHERE m.entity = j.value{condition}",
            (json.dumps(list(keys)), *parameters),
        ).fetchall()
        found: defaultdict[str, list[PassageRef]] = defaultdict(list)
        for entity, passage in zip(json.loads(entities), json.loads(passages), strict=True):
            found[keys[entity]].append(passage)
        return dict(found)

    def _references(self, connection: sqlite3.Connection, seeds: Group[PassageRef]) -> list[ReferenceEdge]:
        # Hidden documents must not use up the limit.
        rows = connection.execute(
            "SELECT l.passage, d.id, l.fragment, l.target, l.collection FROM json_each(?) s CROSS JOIN link l ON l.passage = s.value"
            " JOIN document d ON d.collection = l.collection AND (d.uri = l.target OR d.document_id = l.target)"
            f" WHERE l.target <> '' AND {self._visibility.condition or 'TRUE'} LIMIT ?",
            (json.dumps(list(seeds)), *self._visibility.parameters, _MOST_REFERENCES),
        ).fetchall()
        edges: dict[tuple[int, int], ReferenceEdge] = {}
        for source, document, fragment, target, collection in rows:
            candidates = connection.execute(
                "SELECT q.id, t.headings FROM passage q JOIN passage_text t ON t.passage = q.id"
                " WHERE q.document = ? ORDER BY q.ordinal LIMIT ?",
                (document, 500 if fragment else 1),
            ).fetchall()
            chosen = next(
                (
                    ref
                    for ref, headings in candidates
                    if fragment and _anchors(json.loads(headings)) == fragment.lower()
                ),
                candidates[0][0] if candidates else None,
            )
            if chosen is None or chosen == source:
                continue
            degree = self._statistics.links(connection, collection, target)
            edges[source, chosen] = ReferenceEdge(PassageRef(source), PassageRef(chosen), degree)
        return list(edges.values())


def _statistics_of(rows: Sequence[EntityRow], names: Mapping[int, str]) -> dict[str, EntityStatistics]:
    """Sums over collections, by key."""
    found: dict[str, EntityStatistics] = {}
    for _, entity, key, mentions, titles in rows:
        name = names.get(entity, key)
        other = found.get(key)
        found[key] = (
            EntityStatistics(key, name, mentions, titles)
            if other is None
            else EntityStatistics(
                key, min(name, other.name), mentions + other.mention_count, titles + other.title_count
            )
        )
    return found


PASSAGE_COLUMNS = (
    "SELECT p.id, c.name, o.id, o.document_id, o.title, o.uri, p.ordinal, t.headings, t.text, t.start_byte, t.end_byte"
    " FROM passage p JOIN document o ON o.id = p.document JOIN collection c ON c.id = p.collection"
    " JOIN passage_text t ON t.passage = p.id"
)
"""What `passages_of` needs of passages; a WHERE clause follows."""


def passages_of(connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> tuple[Passage, ...]:
    """The passages of rows of `PASSAGE_COLUMNS`."""
    metadata: dict[int, dict[str, str]] = {row[2]: {} for row in rows}
    entries = connection.execute(
        "SELECT m.document, m.key, m.value FROM json_each(?) j CROSS JOIN document_metadata m ON m.document = j.value",
        (json.dumps(list(metadata)),),
    )
    for document, key, value in entries.fetchall():
        metadata[document][key] = value
    return tuple(
        Passage(
            collection=collection,
            passage_id=f"{document_id}#{ordinal}",
            document_id=document_id,
            title=title,
            headings=tuple(json.loads(headings)),
            text=text,
            uri=uri,
            ordinal=ordinal,
            start_byte=start,
            end_byte=end,
            metadata=metadata[document],
        )
        for _, collection, document, document_id, title, uri, ordinal, headings, text, start, end in rows
    )


def _anchors(headings: Sequence[str]) -> str:
    """The fragment by which pages commonly address a heading: lower case, words joined by hyphens."""
    if not headings:
        return ""
    return "-".join("".join(c if c.isalnum() or c in "-_" else " " for c in headings[-1].lower()).split())
