"""Ids that sort by the time at which they were made."""

import secrets
import time


def new_id() -> str:
    """A fresh id of 32 hexadecimal digits: 48 bits of milliseconds since 1970, then 80 random bits.

    Ids sort as text by the millisecond in which they were made.
    """
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
