"""A generator that is killed in the middle of an answer: its reader sees one stream, whole."""

import asyncio
import random
import sys
from pathlib import Path

import grpc
import pytest
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import coordinator_service_pb2_grpc

from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import AddressSettings, Settings, StoreSettings
from tests.robustness.generator_process import TOKENS

PROGRAM = Path(__file__).with_name("generator_process.py")
KILLS = 12
AT_ONCE = 4


async def start() -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()


async def answer(target: str, after: int, victim: asyncio.subprocess.Process) -> tuple[str, list[tuple[int, bool]]]:
    """The text of an answer, and where it went on; the victim is killed when so many tokens have come."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel)
        text, resumptions = "", []
        async for event in stub.Ask(pb.AskRequest(question="Count.", route=pb.ROUTE_DIRECT), timeout=60):
            text += event.delta.text
            resumptions += [(found.at_token, found.exact) for found in event.completion.resumptions]
            if len(text.split()) >= after and victim.returncode is None:
                victim.kill()
        return text, resumptions


@pytest.mark.timeout(240)  # 24 programs start, of a second of a processor each
async def test_no_token_is_lost_or_repeated(tmp_path: Path) -> None:
    chosen = random.Random(4)
    lane = asyncio.Semaphore(AT_ONCE)

    async def once(after: int) -> int:
        async with lane:
            pods = [await start() for _ in range(2)]
            settings = Settings(
                stores=StoreSettings(data=tmp_path, embedder="none"),
                addresses=AddressSettings(generator="ipv4:" + ",".join(address for _, address in pods)),
            )
            try:
                async with running(["coordinator"], settings) as mesh:
                    text, resumptions = await answer(mesh.targets["coordinator"], after, pods[0][0])
            finally:
                for process, _ in pods:
                    if process.returncode is None:
                        process.kill()
                    await process.wait()
            assert text == "".join(f"{place} " for place in range(TOKENS))
            assert all(exact and after <= at <= TOKENS for at, exact in resumptions)
            return len(resumptions)

    counts = await asyncio.gather(*(once(chosen.randint(1, TOKENS - 20)) for _ in range(KILLS)))
    # Either of the two may write; one of them is killed: some answers have met it.
    assert 0 < sum(counts) <= KILLS
