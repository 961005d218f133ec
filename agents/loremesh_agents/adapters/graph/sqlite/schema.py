"""The tables, and how the file's version is checked.

A passage's id is its handle: AUTOINCREMENT never gives one again. An entity is a row per collection and key. A mention has a kind: bit 1 where a
capitalised span gives it, bit 2 where a title does. The full-text table of a collection is `passages_<id>`; it proposes candidates and finds
the passages that a new title occurs in, and changes in the same transaction as everything else. Its words are ours, separated by spaces: its tokenizer
takes none apart.

A collection has vectors of one model that count, and may have those of another one: each in one of the tables of `VECTOR_TABLES`. `vector_slot` says in which
table those are that count, so that a switch to the others is one row.

A collection with `reader_statistics` keeps its statistics once more for each audience: the documents that have the same readers. There a mention counts
as capitalised, or as titled if only a title makes it: a titled one counts for those alone who may read one of the titles. Elsewhere the audience of a
document is 0, and the tables of audiences have nothing of it.
"""

import sqlite3
import string
from pathlib import Path

from loremesh_agents.domain.errors import ConfigurationError

VERSION = 4

VECTOR_TABLES = ("vector", "second_vector")
"""By the slot."""

_PUNCTUATION = "".join(sorted(set(string.punctuation) - {'"', "'"}))

CAPITALISED = 1
TITLED = 2

_SECOND_VECTORS = """
ALTER TABLE collection ADD COLUMN vector_slot INTEGER NOT NULL DEFAULT 0;
ALTER TABLE collection ADD COLUMN other_model TEXT NOT NULL DEFAULT '';
ALTER TABLE collection ADD COLUMN other_phase TEXT NOT NULL DEFAULT '';
ALTER TABLE collection ADD COLUMN other_count INTEGER NOT NULL DEFAULT 0;
CREATE TABLE second_vector (passage INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT;
"""

_UPGRADES = {3: _SECOND_VECTORS}
"""What takes a file from a version to the next one. Each only adds, so that it takes no time however large the file is."""

_TABLES = """
CREATE TABLE collection (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  uid TEXT NOT NULL,
  revision INTEGER NOT NULL DEFAULT 0,
  embedding_model TEXT NOT NULL DEFAULT '',
  reader_statistics INTEGER NOT NULL DEFAULT 0,
  document_count INTEGER NOT NULL DEFAULT 0,
  restricted_count INTEGER NOT NULL DEFAULT 0,
  passage_count INTEGER NOT NULL DEFAULT 0,
  entity_count INTEGER NOT NULL DEFAULT 0,
  term_total INTEGER NOT NULL DEFAULT 0,
  create_time REAL NOT NULL,
  update_time REAL NOT NULL
) STRICT;
CREATE TABLE document (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  collection INTEGER NOT NULL,
  document_id TEXT NOT NULL,
  title TEXT NOT NULL,
  uri TEXT NOT NULL,
  source_version INTEGER,
  content_hash TEXT NOT NULL,
  media_type TEXT NOT NULL,
  passage_count INTEGER NOT NULL,
  restricted INTEGER NOT NULL,
  audience INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  update_time REAL NOT NULL,
  UNIQUE (collection, document_id)
) STRICT;
CREATE INDEX document_by_revision ON document (collection, revision);
CREATE INDEX document_by_uri ON document (collection, uri);
CREATE TABLE document_reader (document INTEGER NOT NULL, reader TEXT NOT NULL, PRIMARY KEY (document, reader)) STRICT, WITHOUT ROWID;
CREATE TABLE document_metadata (
  document INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (document, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE tombstone (
  collection INTEGER NOT NULL,
  document_id TEXT NOT NULL,
  revision INTEGER NOT NULL,
  source_version INTEGER,
  time REAL NOT NULL,
  PRIMARY KEY (collection, document_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstone_by_revision ON tombstone (collection, revision);
CREATE TABLE passage (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  collection INTEGER NOT NULL,
  document INTEGER NOT NULL,
  ordinal INTEGER NOT NULL,
  length INTEGER NOT NULL,
  terms BLOB NOT NULL,
  counts BLOB NOT NULL,
  UNIQUE (document, ordinal)
) STRICT;
CREATE TABLE passage_text (
  passage INTEGER PRIMARY KEY,
  headings TEXT NOT NULL,
  text TEXT NOT NULL,
  start_byte INTEGER NOT NULL,
  end_byte INTEGER NOT NULL,
  words TEXT NOT NULL,
  extra_terms TEXT NOT NULL,
  names TEXT NOT NULL
) STRICT;
CREATE TABLE vector (passage INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT;
CREATE TABLE removed_passage (
  collection INTEGER NOT NULL, revision INTEGER NOT NULL, passage INTEGER NOT NULL, PRIMARY KEY (collection, revision, passage)
) STRICT, WITHOUT ROWID;
CREATE TABLE term (id INTEGER PRIMARY KEY AUTOINCREMENT, term TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE term_statistics (
  collection INTEGER NOT NULL, term INTEGER NOT NULL, passage_count INTEGER NOT NULL, PRIMARY KEY (collection, term)
) STRICT, WITHOUT ROWID;
CREATE TABLE entity (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  collection INTEGER NOT NULL,
  key TEXT NOT NULL,
  mention_count INTEGER NOT NULL DEFAULT 0,
  title_count INTEGER NOT NULL DEFAULT 0,
  UNIQUE (collection, key)
) STRICT;
CREATE TABLE title (
  entity INTEGER NOT NULL, passage INTEGER NOT NULL, weight REAL NOT NULL, name TEXT NOT NULL, PRIMARY KEY (entity, passage)
) STRICT, WITHOUT ROWID;
CREATE INDEX title_by_passage ON title (passage, entity, weight);
CREATE TABLE mention (
  entity INTEGER NOT NULL, passage INTEGER NOT NULL, kind INTEGER NOT NULL, PRIMARY KEY (entity, passage)
) STRICT, WITHOUT ROWID;
CREATE INDEX mention_by_passage ON mention (passage, entity, kind);
CREATE TABLE link (
  passage INTEGER NOT NULL,
  collection INTEGER NOT NULL,
  target TEXT NOT NULL,
  fragment TEXT NOT NULL,
  PRIMARY KEY (passage, target, fragment)
) STRICT, WITHOUT ROWID;
CREATE INDEX link_by_target ON link (collection, target);
CREATE TABLE audience (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  collection INTEGER NOT NULL,
  readers TEXT NOT NULL,
  document_count INTEGER NOT NULL,
  passage_count INTEGER NOT NULL,
  term_total INTEGER NOT NULL,
  UNIQUE (collection, readers)
) STRICT;
CREATE TABLE audience_term (
  collection INTEGER NOT NULL,
  term INTEGER NOT NULL,
  audience INTEGER NOT NULL,
  passage_count INTEGER NOT NULL,
  PRIMARY KEY (collection, term, audience)
) STRICT, WITHOUT ROWID;
CREATE TABLE audience_entity (
  entity INTEGER NOT NULL,
  audience INTEGER NOT NULL,
  capitalised_count INTEGER NOT NULL,
  titled_count INTEGER NOT NULL,
  title_count INTEGER NOT NULL,
  PRIMARY KEY (entity, audience)
) STRICT, WITHOUT ROWID;
CREATE TABLE audience_link (
  collection INTEGER NOT NULL,
  target TEXT NOT NULL,
  audience INTEGER NOT NULL,
  link_count INTEGER NOT NULL,
  PRIMARY KEY (collection, target, audience)
) STRICT, WITHOUT ROWID;
"""


def full_text_table(collection: int) -> str:
    """Name of a collection's full-text table; the id is ours."""
    return f"passages_{int(collection)}"


def create_full_text(connection: sqlite3.Connection, collection: int) -> None:
    """Makes a collection's full-text table."""
    connection.execute(
        f"CREATE VIRTUAL TABLE {full_text_table(collection)} USING fts5("
        f"words, extra_terms, names, content='', tokenize=\"ascii tokenchars '{_PUNCTUATION}'\")"
    )


def prepare(connection: sqlite3.Connection, path: Path | str) -> None:
    """Makes the tables in a new file, and brings a file of an earlier version up to this one; refuses any other.

    Raises:
        ConfigurationError: The file is newer or too old, or no database of ours.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _upgrade(connection, path)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _upgrade(connection: sqlite3.Connection, path: Path | str) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    while version in _UPGRADES:
        _execute_all(connection, _UPGRADES[version])
        version += 1
        connection.execute(f"PRAGMA user_version = {version}")
    if version == VERSION:
        return
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if version or tables:
        raise ConfigurationError(
            f"{path} is a database of version {version}; this build reads version {VERSION}."
            " Ingest the documents into a new data directory, or use the build that wrote it."
        )
    _execute_all(connection, _TABLES + _SECOND_VECTORS)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _execute_all(connection: sqlite3.Connection, script: str) -> None:
    """Runs statements within the transaction, which `executescript` would end."""
    for statement in filter(str.strip, script.split(";\n")):
        connection.execute(statement)


def next_id(connection: sqlite3.Connection, table: str) -> int:
    """The id that the table would give next. Only the writer may use it: nobody else writes meanwhile."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return (row[0] if row else 0) + 1
