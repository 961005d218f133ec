"""The texts of all queries, built from the names of the schema and from nothing else; every value is a parameter.

What many vertices have is returned as one row of columns: the driver takes 50 microseconds for a row, however little is in it.

Each node is found by an index: the hints say which, for a planner that still believes the store to be empty would scan it. Scopes of subqueries
(`CALL (name)`) need Neo4j 5.23.

Parameters are the entries of one map, `$given`: the server plans a statement anew, half a second for a large one, for each power of ten of the length of
each parameter that is a list or a string, but not for what is in a map.
"""

from collections.abc import Iterable
from functools import cache

from loremesh_agents.domain.graph_schema import EDGES, ID, VERTICES, EdgeLabel, Property, ValueType, VertexLabel

SCHEMA_LABEL = "Schema"
"""Of the one vertex that holds the version of the schema; writers lock it."""
SCHEMA_ID = "schema"
EMBEDDING = "embedding"
"""Property of a passage: its vector as the list of numbers that the vector index takes. `vector` has the bytes, which are read without being parsed."""
WORDS_INDEX = "passage_words"
VECTORS_INDEX = "passage_vectors"
"""Of the vectors that passages hold themselves. Those of other sets have an index each for the even and the odd ones, so that one holds one model of a collection."""

EDGE_ENDS: dict[EdgeLabel, tuple[VertexLabel, VertexLabel]] = {
    EdgeLabel.HAS_PASSAGE: (VertexLabel.DOCUMENT, VertexLabel.PASSAGE),
    EdgeLabel.BEARS: (VertexLabel.PASSAGE, VertexLabel.ENTITY),
    EdgeLabel.MENTIONS: (VertexLabel.PASSAGE, VertexLabel.ENTITY),
    EdgeLabel.LINKS_TO: (VertexLabel.PASSAGE, VertexLabel.ADDRESS),
    EdgeLabel.NAMED_BY: (VertexLabel.DOCUMENT, VertexLabel.ADDRESS),
}
"""What an edge leads from and to."""

_VECTOR = VertexLabel.VECTOR.value
_LABELS = [*(label.value for label in VertexLabel), SCHEMA_LABEL]
# Words are folded and split by us. The collection is a word like the others.
_WORDS = (
    f"CREATE FULLTEXT INDEX {WORDS_INDEX} IF NOT EXISTS FOR (v:Passage) ON EACH [v.uid, v.words, v.further_words]"
    " OPTIONS {indexConfig: {`fulltext.analyzer`: 'whitespace', `fulltext.eventually_consistent`: false}}"
)


# No dimension: each length of vectors has a graph of its own in the index. Not quantized: what is proposed is what the index ranks by its own
# numbers, and with 8 bits 3 in 100 of the nearest 100 are missed however many are asked for, against 2 in 10,000 without.
def _vectors(index: str, label: str, key: str) -> str:
    return (
        f"CREATE VECTOR INDEX {index} IF NOT EXISTS FOR (v:{label}) ON (v.{key})"
        " OPTIONS {indexConfig: {`vector.similarity_function`: 'cosine', `vector.quantization.enabled`: false}}"
    )


def _unique(label: str) -> str:
    return f"CREATE CONSTRAINT {label.lower()}_id IF NOT EXISTS FOR (v:{label}) REQUIRE v.{ID.name} IS UNIQUE"


def set_embedding(number: int) -> str:
    """Property of a vector's own vertex, as `EMBEDDING`, by the number of its set."""
    return f"{EMBEDDING}_{number % 2}"


def set_index(number: int) -> str:
    """The vector index of a set that passages do not hold themselves."""
    return f"further_vectors_{number % 2}"


MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        *(_unique(label) for label in _LABELS if label != _VECTOR),
        "CREATE INDEX passage_ref IF NOT EXISTS FOR (v:Passage) ON (v.ref)",
        "CREATE INDEX passage_uid IF NOT EXISTS FOR (v:Passage) ON (v.uid)",
        _WORDS,
        _vectors(VECTORS_INDEX, "Passage", EMBEDDING),
    ),
    2: (
        _unique(_VECTOR),
        f"CREATE INDEX vector_uid IF NOT EXISTS FOR (v:{_VECTOR}) ON (v.uid)",
        *(_vectors(set_index(number), _VECTOR, set_embedding(number)) for number in range(2)),
    ),
}
"""What takes the schema to each version."""

AWAIT_INDEXES = "CALL db.awaitIndexes($given.seconds)"
SCHEMA_VERSION = f"MATCH (s:{SCHEMA_LABEL} {{{ID.name}: $given.schema}}) RETURN s.version"
SET_SCHEMA_VERSION = f"MERGE (s:{SCHEMA_LABEL} {{{ID.name}: $given.schema}}) SET s.version = $given.version"


def single(label: VertexLabel) -> tuple[Property, ...]:
    """The label's properties of one value."""
    return tuple(declared for declared in VERTICES[label] if not declared.many)


def many(label: VertexLabel) -> tuple[Property, ...]:
    """The label's properties that are sets."""
    return tuple(declared for declared in VERTICES[label] if declared.many)


def _found(name: str, label: str, value: str, key: str = ID.name) -> str:
    return f"MATCH ({name}:{label} {{{key}: {value}}}) USING INDEX {name}:{label}({key})"


_LOCKED = f"""
{_found("s", SCHEMA_LABEL, "$given.schema")}
SET s.locked = true"""
"""Each writer takes the lock of the schema's vertex before it reads anything. So what it reads is what it changes: no value of a set is lost, and no
decision falls between the look for it and the changes."""


@cache
def create(label: VertexLabel) -> str:
    """Makes a vertex; a constraint is violated where it is there. Behind the lock, so that no changes are made while they are decided."""
    return f"{_LOCKED}\nCREATE (v:{label.value}) SET v = $given.properties RETURN true"


def _grown(name: str) -> str:
    return (
        f"CASE WHEN row.sets.{name} IS NULL THEN v.{name}"
        f" ELSE coalesce(v.{name}, []) + [x IN row.sets.{name} WHERE NOT x IN coalesce(v.{name}, [])] END"
    )


def vertices_parameter(label: VertexLabel) -> str:
    """Name of the parameter with new vertices: `id`, `properties`, `sets`, and `embedding` with the property for it (`index`) of each."""
    return f"vertices_{label.value}"


def edges_parameter(label: EdgeLabel) -> str:
    """Name of the parameter with new edges: source, target and the values of `EDGES` of each."""
    return f"edges_{label.value}"


def changes_parameter(label: VertexLabel) -> str:
    """Name of the parameter with changes of vertices: `id`, `gained`, `lost` and `properties` of each."""
    return f"changes_{label.value}"


def _vertices(label: VertexLabel) -> str:
    lines = [
        f"UNWIND $given.{vertices_parameter(label)} AS row",
        f"MERGE (v:{label.value} {{{ID.name}: row.id}})",
        "ON CREATE SET v += row.properties, v += row.sets",
        ", ".join(["ON MATCH SET v += row.properties", *(f"v.{one.name} = {_grown(one.name)}" for one in many(label))]),
    ]
    if any(declared.type is ValueType.VECTOR for declared in single(label)):
        # The procedure stores 32 bits a number; SET would store 64.
        lines.append("WITH v, row WHERE row.embedding IS NOT NULL")
        lines.append("CALL db.create.setNodeVectorProperty(v, row.index, row.embedding)")
    return "\n".join(lines)


def _edges(label: EdgeLabel) -> str:
    source, target = (end.value for end in EDGE_ENDS[label])
    values = ", ".join(f"{declared.name}: row[{place + 2}]" for place, declared in enumerate(EDGES[label]))
    return "\n".join(
        [
            f"UNWIND $given.{edges_parameter(label)} AS row",
            f"MATCH (a:{source} {{{ID.name}: row[0]}}), (b:{target} {{{ID.name}: row[1]}})",
            f"USING INDEX a:{source}({ID.name}) USING INDEX b:{target}({ID.name})",
            f"CREATE (a)-[:{label.value} {{{values}}}]->(b)",
        ]
    )


def _changed(name: str) -> str:
    return (
        f"CASE WHEN row.gained.{name} IS NULL AND row.lost.{name} IS NULL THEN v.{name} ELSE"
        f" [x IN coalesce(v.{name}, []) WHERE NOT x IN coalesce(row.lost.{name}, [])]"
        f" + [x IN coalesce(row.gained.{name}, []) WHERE NOT x IN coalesce(v.{name}, [])] END"
    )


def _changes(label: VertexLabel) -> str:
    sets = ["v += row.properties", *(f"v.{declared.name} = {_changed(declared.name)}" for declared in many(label))]
    return "\n".join(
        [
            f"UNWIND $given.{changes_parameter(label)} AS row",
            _found("v", label.value, "row.id"),
            f"SET {', '.join(sets)}",
        ]
    )


@cache
def apply(parts: frozenset[str]) -> str:
    """Makes changes unless they are decided; gives whether it did, or nothing where there is no schema.

    Args:
        parts: Names of the parameters that there are.
    """
    known = [
        *((vertices_parameter(label), _vertices(label)) for label in VertexLabel),
        *((edges_parameter(label), _edges(label)) for label in EdgeLabel),
        *((changes_parameter(label), _changes(label)) for label in VertexLabel),
    ]
    blocks = "".join(
        f"\nCALL (open) {{\nWITH open WHERE open\n{text}\n}}" for parameter, text in known if parameter in parts
    )
    decision = VertexLabel.DECISION.value
    return (
        f"{_LOCKED}\nWITH s\nOPTIONAL MATCH (d:{decision} {{{ID.name}: $given.unless}}) USING INDEX d:{decision}({ID.name})"
        f"\nWITH d IS NULL AS open{blocks}\nRETURN open"
    )


def ids_parameter(label: VertexLabel) -> str:
    """Name of the parameter with ids of vertices."""
    return f"ids_{label.value}"


@cache
def remove(label: VertexLabel) -> str:
    """Removes some of the edges of vertices, and where these are all, the vertices; gives how many edges."""
    vertex = f"UNWIND $given.ids AS id\n{_found('v', label.value, 'id')}"
    return f"""{_LOCKED}
WITH s
CALL () {{
{vertex}
MATCH (v)-[r]-()
WITH DISTINCT r LIMIT $given.most
DELETE r
RETURN count(*) AS edges
}}
CALL (edges) {{
WITH edges WHERE edges < $given.most
{vertex}
DETACH DELETE v
}}
RETURN edges"""


@cache
def records(columns: tuple[tuple[VertexLabel, tuple[str, ...]], ...]) -> str:
    """Vertices by id: of each label its name, the ids found and the values of each property.

    Args:
        columns: Properties to read, by label.
    """
    return "\nUNION ALL\n".join(
        f"UNWIND $given.{ids_parameter(label)} AS id\n{_found('v', label.value, 'id')}\nWITH collect(v) AS found\n"
        f"RETURN '{label.value}' AS label, {_column('v', ID.name)} AS ids, {_columns('v', names)} AS values"
        for label, names in columns
    )


def _column(name: str, key: str) -> str:
    return f"[{name} IN found | {name}.{key}]"


def _columns(name: str, keys: Iterable[str]) -> str:
    return f"[{', '.join(_column(name, key) for key in keys)}]"


def access(name: str, *, readers: bool, conditions: bool) -> str:
    """Whether a passage may be seen.

    Args:
        name: What the query calls the passage.
        readers: Whether only some readers' passages may be.
        conditions: Whether there are conditions.
    """
    parts = [f"{name}.uid IN $given.uids", f"{name}.ref < $given.before"]
    if readers:
        parts.append(f"any(x IN {name}.readers WHERE x IN $given.readers)")
    if conditions:
        parts.append(f"all(c IN $given.conditions WHERE any(x IN {name}.metadata WHERE x IN c))")
    return " AND ".join(parts)


@cache
def passages(fields: tuple[str, ...], *, readers: bool, conditions: bool) -> str:
    """Passages by handle: those found, their ends, and the values of each field."""
    return (
        f"UNWIND $given.refs AS ref\n{_found('p', 'Passage', 'ref', 'ref')}\n"
        f"WHERE {access('p', readers=readers, conditions=conditions)}\nWITH collect(p) AS found\n"
        f"RETURN {_column('p', 'ref')}, {_column('p', 'ends')}, {_columns('p', fields)}"
    )


@cache
def neighbourhood(*, readers: bool, conditions: bool) -> str:
    """One row with all parts of a neighbourhood. Edges come by their vertex: what they share, then a column for each value of theirs."""
    seen = access("p", readers=readers, conditions=conditions)
    entity = f"e.{ID.name}"
    return f"""
CALL () {{
UNWIND $given.seeds AS ref
{_found("p", "Passage", "ref", "ref")}
WHERE {seen}
RETURN collect(DISTINCT p) AS seeds
}}
CALL (seeds) {{
UNWIND seeds AS p
MATCH (p)-[m:MENTIONS]->(e)
WITH p, collect(e) AS es, collect(coalesce(m.kind, 0)) AS kinds
WITH collect([p.ref, p.ends, [e IN es | {entity}], kinds]) AS seed_mentions, collect(es) AS groups
RETURN seed_mentions, groups AS mentioned
}}
CALL (seeds) {{
UNWIND seeds AS p
MATCH (p)-[b:BEARS]->(e)
RETURN collect([p.ref, p.ends, {entity}, coalesce(b.weight, 0.0), coalesce(b.title, '')]) AS seed_titles, collect(e) AS borne
}}
CALL (seeds) {{
UNWIND seeds AS p
MATCH (p)-[l:LINKS_TO]->(a)
RETURN collect([p.ref, a.{ID.name}, l.fragment]) AS links, collect(DISTINCT a) AS linked
}}
CALL () {{
UNWIND $given.entities AS id
{_found("e", "Entity", "id")}
RETURN collect(e) AS asked
}}
CALL (mentioned, borne, asked) {{
UNWIND mentioned + [borne, asked] AS es
UNWIND es AS e
RETURN collect(DISTINCT e) AS entities
}}
CALL (entities) {{
UNWIND entities AS e
CALL (e) {{
MATCH (e)<-[b:BEARS]-(p)
WHERE {seen}
WITH b, p ORDER BY b.weight DESC, p.ref LIMIT $given.title_limit
RETURN collect(p) AS ps, collect(coalesce(b.weight, 0.0)) AS weights, collect(coalesce(b.title, '')) AS names
}}
WITH e, ps, weights, names WHERE size(ps) > 0
RETURN collect([{entity}, [p IN ps | p.ref], [p IN ps WHERE size(p.ends) > 0 | [p.ref, p.ends]], weights, names]) AS titles
}}
CALL (entities) {{
UNWIND entities AS e
WITH e WHERE e.size <= $given.mention_limit
MATCH (e)<-[m:MENTIONS]-(p)
WHERE {seen}
WITH e, collect(p.ref) AS refs, collect(CASE WHEN size(p.ends) > 0 THEN [p.ref, p.ends] END) AS ended, collect(coalesce(m.kind, 0)) AS kinds
RETURN collect([{entity}, refs, ended, kinds]) AS mentions
}}
CALL (linked) {{
UNWIND linked AS a
MATCH (a)<-[:NAMED_BY]-(d)
RETURN collect([a.{ID.name}, d.document_id, d.uid, d.states]) AS documents
}}
RETURN seed_mentions, seed_titles, links,
[e IN entities | [{entity}, e.entity_key, e.uid, e.size, e.counts]], titles, mentions,
[a IN linked | [a.{ID.name}, a.address, a.uid, a.counts]], documents"""


_OWN = "p.uid IN $given.uids"
_OF_SETS = "[v.uid, v.generation] IN $given.sets"


@cache
def near(number: int | None) -> str:
    """Passages among the nearest of all: `ref`, `ends` and score of each, the nearest first.

    Args:
        number: Of a set of those whose vectors are asked for, as pairs of collection and set in `sets`; None for those that passages hold themselves,
            of the collections in `uids`.
    """
    if number is None:
        found = f"CALL db.index.vector.queryNodes('{VECTORS_INDEX}', $given.candidates, $given.vector) YIELD node AS p, score\nWITH p, score WHERE {_OWN}"
    else:
        found = (
            f"CALL db.index.vector.queryNodes('{set_index(number)}', $given.candidates, $given.vector) YIELD node AS v, score\n"
            f"WITH v, score WHERE {_OF_SETS}\n{_found('p', 'Passage', 'v.ref', 'ref')}"
        )
    return f"{found}\nWITH p, score ORDER BY score DESC, p.ref\nRETURN collect([p.ref, p.ends, score])"


@cache
def compared(number: int | None) -> str:
    """One row: how many vectors there are, up to a number, and if they are fewer the nearest of them all, as `near`; arguments as there."""
    if number is None:
        name, key, held = "p", EMBEDDING, f"MATCH (p:Passage) USING INDEX p:Passage(uid)\nWHERE {_OWN}"
        passage = ""
    else:
        name, key = "v", set_embedding(number)
        held = f"MATCH (v:{_VECTOR}) USING INDEX v:{_VECTOR}(uid)\nWHERE v.uid IN $given.uids AND {_OF_SETS}"
        passage = f"\n{_found('p', 'Passage', 'v.ref', 'ref')}"
    return f"""
CALL () {{
{held}
WITH {name} LIMIT $given.most
RETURN collect({name}) AS compared
}}
CALL (compared) {{
UNWIND CASE WHEN size(compared) < $given.most THEN compared ELSE [] END AS {name}
WITH {name} WHERE size({name}.{key}) = size($given.vector)
WITH {name}, vector.similarity.cosine({name}.{key}, $given.vector) AS score ORDER BY score DESC, {name}.ref LIMIT $given.limit{passage}
WITH p, score ORDER BY score DESC, p.ref
RETURN collect([p.ref, p.ends, score]) AS nearest
}}
RETURN size(compared), nearest"""


@cache
def dimension(number: int | None) -> str:
    """Length of the vectors of a collection, if it has some; the argument as of `near`."""
    label, key, of_set = (
        ("Passage", EMBEDDING, "") if number is None else (_VECTOR, set_embedding(number), f" AND {_OF_SETS}")
    )
    return (
        f"MATCH (v:{label}) USING INDEX v:{label}(uid)\nWHERE v.uid IN $given.uids AND v.{key} IS NOT NULL{of_set}\n"
        f"RETURN size(v.{key}) LIMIT 1"
    )


WITH_WORDS = f"""
CALL db.index.fulltext.queryNodes('{WORDS_INDEX}', $given.query, {{limit: $given.limit}}) YIELD node AS p, score
WITH p ORDER BY score DESC, p.ref
RETURN collect([p.ref, p.ends])"""
"""Passages by the words that they share with a query: `ref` and `ends`, the best first."""
