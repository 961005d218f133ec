"""grpcurl, which knows the contract by reflection alone. `make test-clients` builds it and names it in LOREMESH_TEST_GRPCURL."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from loremesh_agents.bootstrap.serve import running
from tests.mesh.conftest import DOCUMENTS, Client, settings_for

pytestmark = pytest.mark.clients


async def grpcurl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        os.environ["LOREMESH_TEST_GRPCURL"], "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_grpcurl_lists_describes_and_asks(tmp_path: Path) -> None:
    async with running(("all",), settings_for(tmp_path)) as mesh:
        client = Client(mesh)
        await client.ingest(DOCUMENTS)
        await client.close()
        address = mesh.targets["coordinator"]
        assert "loremesh.v1.CoordinatorService" in (await grpcurl(address, "list")).split()
        described = await grpcurl(address, "describe", "loremesh.v1.CoordinatorService")
        assert "rpc Ask ( .loremesh.v1.AskRequest ) returns ( stream .loremesh.v1.AskResponse )" in described
        question = json.dumps({"question": "Who has led Acme Corporation since 2019?"})
        answer = await grpcurl("-d", question, address, "loremesh.v1.CoordinatorService/Ask")
    events = json.loads("[" + answer.replace("}\n{", "},{") + "]")
    assert "plan" in events[0]
    assert "completion" in events[-1]
    assert "Jane Doe" in "".join(event.get("delta", {}).get("text", "") for event in events)
