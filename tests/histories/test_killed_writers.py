"""Writers are killed at random moments: what is acknowledged stays, nobody sees a part of a write, and nobody goes back in time."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.engines.graph_engines import ENGINES, url_of
from tests.histories.clients import SQLITE
from tests.histories.model import judge
from tests.histories.recording import Recorder

RUNS = 10


@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", [SQLITE, *(pytest.param(name, marks=pytest.mark.engines) for name in ENGINES)])
async def test_histories_with_killed_writers_are_explained_by_whole_writes(engine: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        url = str(tmp_path / "graph.db")
        if engine != SQLITE:
            await stack.enter_async_context(ENGINES[engine]())
            url = url_of(engine)
        recorder = Recorder(engine, url, seed=0)
        stack.push_async_callback(recorder.close)
        acknowledged = 0
        for _ in range(RUNS):
            history = await recorder.history()
            verdict = judge(history.attempts, history.looks)
            assert (verdict.lost, verdict.torn, verdict.backwards) == ([], [], [])
            acknowledged += history.acknowledged
        assert acknowledged > 2 * RUNS
