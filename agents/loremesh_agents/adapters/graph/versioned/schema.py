"""The schema of a store: whether this build can work with it, and the migrations that bring it there."""

from loremesh_agents.adapters.graph.versioned.engine import GraphEngine
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.domain.graph_schema import VERSION

MIGRATIONS = {
    1: "vertices, edges and indexes of documents, passages, entities, addresses, terms and versions",
    2: "vertices and indexes of vectors of a second embedding model",
}
"""By the version that a migration leads to: what it does."""


async def require_current(engine: GraphEngine, *, deadline: Deadline) -> None:
    """Refuses a store with another schema than this build's.

    Raises:
        ConfigurationError: It has another one; the message says what to do.
    """
    found = await engine.schema_version(deadline=deadline)
    if found == VERSION:
        return
    if found < VERSION:
        raise ConfigurationError(
            f"the {engine.name} store has graph schema {found}, this build needs {VERSION}: run `loremesh graph migrate`"
        )
    raise ConfigurationError(
        f"the {engine.name} store has graph schema {found}, which is newer than {VERSION}, this build's: use the build that migrated it"
        " (`loremesh graph migrate --plan` of a build shows its version)"
    )


async def pending(engine: GraphEngine, *, deadline: Deadline) -> tuple[int, tuple[int, ...]]:
    """The version of a store's schema, and the migrations that it lacks, in order.

    Raises:
        ConfigurationError: Its schema is newer than this build.
    """
    found = await engine.schema_version(deadline=deadline)
    if found > VERSION:
        await require_current(engine, deadline=deadline)
    return found, tuple(range(found + 1, VERSION + 1))


async def migrate(engine: GraphEngine, *, deadline: Deadline) -> tuple[int, ...]:
    """Brings a store's schema up to this build's, each migration whole before the next; gives those that were made.

    It may be repeated after it broke off. Reads and writes of a build that the schema fits go on meanwhile.

    Raises:
        ConfigurationError: Its schema is newer than this build.
    """
    _, lacking = await pending(engine, deadline=deadline)
    for version in lacking:
        await engine.migrate(version, deadline=deadline)
    return lacking
