"""`loremesh serve`: all in one process, or a process for each agent; the same events."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
from google.protobuf import json_format
from loremesh.v1 import coordinator_service_pb2 as pb
from loremesh.v1 import coordinator_service_pb2_grpc

from loremesh_agents.bootstrap.serve import ALL, running
from tests.mesh.conftest import DOCUMENTS, Client, settings_for


@asynccontextmanager
async def served(agent: str, folder: Path, addresses: dict[str, str]) -> AsyncIterator[str]:
    environment = {
        **os.environ,
        "LOREMESH_STORES__EMBEDDER": "none",
        **{f"LOREMESH_ADDRESSES__{name.upper()}": address for name, address in addresses.items()},
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loremesh_agents.cli", "serve", agent, "--free-ports", "--data", str(folder)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    try:
        assert process.stdout is not None
        name, address = (await process.stdout.readline()).decode().split()
        assert name == agent
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


def comparable(event: pb.AskResponse) -> dict[str, object]:
    """An event without what time makes of it."""
    found = json_format.MessageToDict(event)
    found.get("completion", {}).pop("timings", None)
    for entry in (found.get("plan", {}), *found.get("plan", {}).get("steps", [])):
        entry.pop("budget", None)
    return found


def merged(events: list[dict[str, object]]) -> list[dict[str, object]]:
    """The events with the deltas joined: how tokens travel together is a matter of time."""
    text = "".join(event["delta"]["text"] for event in events if "delta" in event)
    return [{"text": text}, *(event for event in events if "delta" not in event)]


async def answers(address: str) -> list[list[dict[str, object]]]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel)
        found = []
        for question in ("Who has led Acme Corporation since 2019?", "Where was the leader of Acme Corporation born?"):
            call = stub.Ask(pb.AskRequest(question=question), timeout=20)
            found.append(merged([comparable(event) async for event in call]))
        return found


async def test_one_process_or_many_give_the_same_events(tmp_path: Path) -> None:
    async with running(("all",), settings_for(tmp_path)) as mesh:
        client = Client(mesh)
        await client.ingest(DOCUMENTS)
        together = await answers(mesh.targets["coordinator"])
        await client.close()
    addresses: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        for agent in ("generator", "retriever", "synthesizer", "coordinator"):
            addresses[agent] = await stack.enter_async_context(served(agent, tmp_path, dict(addresses)))
        apart = await answers(addresses["coordinator"])
    for one, other in zip(together, apart, strict=True):
        for event, same in zip(one, other, strict=True):
            assert event == same


def test_every_agent_has_an_address_of_its_own() -> None:
    addresses = settings_for(Path("unused")).addresses.model_dump()
    assert set(addresses) == set(ALL)
    assert len(set(addresses.values())) == len(ALL)
