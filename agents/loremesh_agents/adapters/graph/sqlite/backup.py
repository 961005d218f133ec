"""Copies of a database that others go on writing."""

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from loremesh_agents.adapters.graph.sqlite.connection import translated_errors
from loremesh_agents.domain.revision import CollectionRevision

_PAGES = 1024


def copy_database(
    source: Path, target: Path, progress: Callable[[int, int], None]
) -> tuple[int, Mapping[str, CollectionRevision]]:
    """Copies one state of a database into a new file: the newest that was committed when this began.

    Writers are not held up. The write-ahead log of the source keeps what they write meanwhile, and is only then written back.

    Args:
        source: The file; it must be there.
        target: The copy; it must not be there.
        progress: Is told how many pages are copied, and of how many.

    Returns:
        The version of its schema, and the states of its collections by name.

    Raises:
        LoremeshError: As `translated_errors`.
    """
    with (
        translated_errors(),
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as reader,
        closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        reader.execute("PRAGMA query_only = 1")
        # A read transaction holds the state: without one, a copy in several steps would begin again at every commit.
        reader.execute("BEGIN")
        (version,) = reader.execute("PRAGMA user_version").fetchone()
        rows = reader.execute("SELECT name, uid, revision FROM collection ORDER BY name").fetchall()
        reader.backup(copy, pages=_PAGES, progress=lambda _, left, total: progress(total - left, total), sleep=0)
        # One file, without a log beside it. Opening it for a store turns the log on again.
        copy.execute("PRAGMA journal_mode = DELETE")
    return version, {name: CollectionRevision(name, uid, revision) for name, uid, revision in rows}


def require_sound(path: Path) -> None:
    """Reads all of a database.

    Raises:
        BackendUnavailable: It is damaged.
    """
    with translated_errors(), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
