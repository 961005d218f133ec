"""Histories with killed writers: what a graph store promises, looked for where it could break.

In each run two processes (one on SQLite) write to a collection of their own, are killed at a random moment of an operation, and a third has to succeed after them;
readers look all the while. What all of them were told and saw is recorded and compared with a small model (`tests/histories/model.py`), in which an operation
whose writer was killed may have happened or not. Leases are 6 s here, not 45, so that a run does not wait so long for the dead.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from loremesh_agents.runtime.logs import configure_logging
from tests.engines.graph_engines import ENGINES, url_of
from tests.histories.clients import SQLITE
from tests.histories.model import judge
from tests.histories.recording import Recorder

_TOLD = 10
"""Runs after which progress is told."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--engine", choices=(SQLITE, *ENGINES), default=SQLITE, help="Whose store is tried.")
    parser.add_argument("--runs", type=int, default=100, help="Histories.")
    parser.add_argument("--seed", type=int, default=0, help="Of what is written, and of when writers are killed.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    configure_logging("ERROR", "text")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments.engine, arguments.runs, arguments.seed))


async def _measure(engine: str, runs: int, seed: int) -> dict[str, Any]:
    counts = dict.fromkeys(("killed", "acknowledged", "unknown", "looks", "lost", "torn", "backwards"), 0)
    times: list[float] = []
    async with AsyncExitStack() as stack:
        url = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "graph.db")
        if engine != SQLITE:
            await stack.enter_async_context(ENGINES[engine]())
            url = url_of(engine)
        recorder = Recorder(engine, url, seed=seed)
        stack.push_async_callback(recorder.close)
        for number in range(1, runs + 1):
            began = time.perf_counter()
            history = await recorder.history()
            times.append(1000 * (time.perf_counter() - began))
            verdict = judge(history.attempts, history.looks)
            for finding in (*verdict.lost, *verdict.torn, *verdict.backwards):
                sys.stderr.write(f"run {number}: {finding}\n")
            found = (history.killed, history.acknowledged, history.unknown, len(history.looks))
            found = (*found, len(verdict.lost), len(verdict.torn), len(verdict.backwards))
            counts = {name: counts[name] + more for name, more in zip(counts, found, strict=True)}
            if number % _TOLD == 0:
                sys.stderr.write(f"{number} runs: {counts}\n")
    return {
        "benchmark": "histories",
        "engine": engine,
        "runs": runs,
        **counts,
        "ms_per_run": round(statistics.fmean(times)),
    }
