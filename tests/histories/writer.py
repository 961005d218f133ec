"""`python -m tests.histories.writer ENGINE URL`: writes until it is killed, and says what it does, a line of JSON each, before and after.

It says `ready`, and begins when it reads a line: `{"collection": ..., "first": ..., "seed": ...}`.
"""

import asyncio
import dataclasses
import json
import os
import random
import sys
import time

from loremesh_agents.domain.errors import LoremeshError, WriteConflict
from tests.histories.clients import carry_out, opened_store, operation, patiently


def _say(**line: object) -> None:
    """In one piece, and gone when it returns: nothing is left in a buffer when the process is killed."""
    os.write(1, f"{json.dumps(line)}\n".encode())


async def _write(engine: str, url: str) -> None:
    store = opened_store(engine, url)
    await store.check(deadline=patiently())
    _say(ready=True)
    order = json.loads(await asyncio.to_thread(sys.stdin.readline))
    chance = random.Random(order["seed"])
    number = order["first"]
    parent = os.getppid()
    while os.getppid() == parent:
        number += 1
        attempted = operation(number, chance)
        _say(began=time.monotonic(), **dataclasses.asdict(attempted))
        try:
            revision = await carry_out(store, order["collection"], attempted)
        except WriteConflict:
            _say(ended=time.monotonic(), number=number, refused=True)
        except LoremeshError:
            # Nobody knows whether it has happened.
            continue
        else:
            _say(ended=time.monotonic(), number=number, revision=revision)


if __name__ == "__main__":
    asyncio.run(_write(*sys.argv[1:]))
