"""Analysis beside the agent's own process: the same passages, whatever becomes of that process."""

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from loremesh_agents.domain.document import Document, Section
from loremesh_agents.knowledge.analysis import Analysis, analysed

MANY = {
    place: Document(f"d{place}", f"Title {place}", (Section(f"Ada met Babbage near bridge {place}. " * 40),))
    for place in range(400)
}
FEW = {0: MANY[0]}
PATIENCE = 60


async def started(analysis: Analysis) -> psutil.Process:
    """The process of an analysis, at work."""
    before = set(psutil.Process().children())
    async with asyncio.timeout(PATIENCE):
        while not analysis.beside:
            await analysis.analyse(MANY)
    (process,) = [child for child in set(psutil.Process().children()) - before if "spawn_main" in str(child.cmdline())]
    return process


@pytest.mark.parametrize("documents", [MANY, FEW], ids=["many", "few"])
async def test_the_process_gives_what_the_agent_itself_would(documents: dict[int, Document]) -> None:
    analysis = Analysis()
    try:
        await started(analysis)
        assert await analysis.analyse(documents) == analysed(documents)
    finally:
        analysis.close()


async def test_documents_outlive_the_process_that_analyses_them(caplog: pytest.LogCaptureFixture) -> None:
    analysis = Analysis()
    try:
        process = await started(analysis)
        process.suspend()
        waiting = asyncio.create_task(analysis.analyse(MANY))
        await asyncio.sleep(0)
        process.kill()
        assert await waiting == analysed(MANY)
        assert "has died" in caplog.text
        assert await analysis.analyse(MANY) == analysed(MANY)
    finally:
        analysis.close()


async def test_documents_do_not_wait_for_a_process_that_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    analysis = Analysis(seconds=5)
    try:
        process = await started(analysis)
        process.suspend()
        assert await analysis.analyse(MANY) == analysed(MANY)
        assert "took more than 5 s" in caplog.text
        await asyncio.to_thread(process.wait, PATIENCE)
    finally:
        analysis.close()


async def test_a_closed_analysis_leaves_no_process() -> None:
    analysis = Analysis()
    process = await started(analysis)
    analysis.close()
    await asyncio.to_thread(process.wait, PATIENCE)


_AGENT = f"""
import asyncio
from loremesh_agents.knowledge.analysis import Analysis
from tests.unit.knowledge.test_analysis import started

async def main():
    analysis = Analysis()
    print((await started(analysis)).pid, flush=True)
    await asyncio.sleep({PATIENCE})

asyncio.run(main())
"""


async def test_the_process_of_a_killed_agent_ends() -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", _AGENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert agent.stdout is not None
        process = psutil.Process(int(await asyncio.to_thread(agent.stdout.readline)))
        agent.kill()
        await asyncio.to_thread(process.wait, PATIENCE)
    finally:
        agent.kill()
        agent.wait()
        if agent.stdout is not None:
            agent.stdout.close()
