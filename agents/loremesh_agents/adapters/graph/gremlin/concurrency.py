"""Several requests at once, of one call."""

from asyncio import TaskGroup
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


async def at_once(items: Iterable[_Item], call: Callable[[_Item], Awaitable[_Result]], *, limit: int) -> list[_Result]:
    """The results of a call on each item, in order; items are taken only when a call can begin.

    Raises:
        Exception: The first failure of a call, after the others have ended.
    """
    results: dict[int, _Result] = {}
    numbered = enumerate(items)

    async def work() -> None:
        for number, item in numbered:
            results[number] = await call(item)

    # A single item needs no task; the next ones are not taken before somebody is free for them.
    first = list(islice(numbered, 2))
    if len(first) < 2:
        return [await call(item) for _, item in first]

    async def begin(number: int, item: _Item) -> None:
        results[number] = await call(item)
        await work()

    try:
        async with TaskGroup() as group:
            for number, item in first:
                group.create_task(begin(number, item))
            for _ in range(limit - len(first)):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [results[number] for number in range(len(results))]
