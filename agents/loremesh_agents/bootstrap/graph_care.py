"""Looking after the graph store that settings name: its schema, and what is in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from loremesh_agents.bootstrap.graph_shape import GraphShape, graph_shape
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Collection
from loremesh_agents.ports.graph import GraphStore

_PAGE = 500


@dataclass(frozen=True, slots=True)
class SchemaReport:
    """What a migration found, and did.

    Attributes:
        found: Version of the schema before; None for a store that brings its own up to date when it is opened.
        needed: The version that this build needs; None for the same.
        pending: Migrations that were lacking, by version, with what each does.
        made: Those of them that were made.
    """

    found: int | None
    needed: int | None
    pending: Mapping[int, str]
    made: tuple[int, ...]


async def migrate_schema(graph: GraphStore, *, plan: bool, deadline: Deadline) -> SchemaReport:
    """Brings the schema of a store up to this build's.

    Args:
        graph: The store.
        plan: Whether only to say what would be done.
        deadline: When to give up; what was made until then stays.

    Raises:
        ConfigurationError: The schema is newer than this build.
    """
    from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
    from loremesh_agents.adapters.graph.versioned.schema import MIGRATIONS, migrate, pending
    from loremesh_agents.domain.graph_schema import VERSION

    if not isinstance(graph, VersionedGraphStore):
        await graph.check(deadline=deadline)
        return SchemaReport(None, None, {}, ())
    found, lacking = await pending(graph.engine, deadline=deadline)
    made = () if plan else await migrate(graph.engine, deadline=deadline)
    return SchemaReport(found, VERSION, {version: MIGRATIONS[version] for version in lacking}, made)


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What is in a store.

    Attributes:
        collections: Their states, by name.
        shapes: How each of them lies in its graph, in the same order.
        version: The newest version of the store; None where it has transactions instead.
        given_up: Versions that do not count.
        unswept: Versions of which something may be there that nobody needs any more.
        purging: Deleted collections of which something is there still.
    """

    collections: tuple[Collection, ...]
    shapes: tuple[GraphShape, ...]
    version: int | None
    given_up: int
    unswept: int
    purging: int


async def graph_report(graph: GraphStore, *, top: int, deadline: Deadline) -> GraphReport:
    """What is in a store.

    Args:
        graph: The store.
        top: Most hot entities to name of a collection.
        deadline: When to give up.
    """
    from loremesh_agents.adapters.graph.versioned import VersionedGraphStore

    found: list[Collection] = []
    while page := await graph.collections(after=found[-1].name if found else "", limit=_PAGE, deadline=deadline):
        found += page
    shapes = tuple([await graph_shape(graph, entry.name, top=top, deadline=deadline) for entry in found])
    if not isinstance(graph, VersionedGraphStore):
        return GraphReport(tuple(found), shapes, None, 0, 0, 0)
    head = await graph.head(deadline=deadline)
    unswept = head.version - head.swept
    purging = sum(not entry.vectors_alone for entry in head.purging)
    return GraphReport(tuple(found), shapes, head.version, len(head.view.aborted), unswept, purging)
