"""Many rows in few statements."""

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

_SIZES = (256, 16, 1)


def execute_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    """Runs a statement over rows, up to 256 at a time.

    `executemany` would give the interpreter's lock away and ask for it again for every row, and each time wait for the threads that hold it.

    Args:
        connection: The connection.
        statement: SQL with `{rows}` where the rows stand, as in `INSERT INTO t VALUES {rows}`.
        rows: Rows of the same width.
    """
    start = 0
    for size in _SIZES:
        if len(rows) - start < size:
            continue
        row = f"({', '.join('?' * len(rows[0]))})"
        text = statement.format(rows=", ".join([row] * size))
        while len(rows) - start >= size:
            connection.execute(text, tuple(chain.from_iterable(rows[start : start + size])))
            start += size
