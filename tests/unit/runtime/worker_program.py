"""A worker for the tests of the supervisor: serves on the port that it is given."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack

from loremesh_agents.runtime.lifecycle import DrainOptions, run
from loremesh_agents.runtime.metrics import Metrics
from loremesh_agents.runtime.server import AgentServer, ServerOptions
from tests.unit.runtime.support import AGENT, service, text


async def unary(request, _):
    if request.value == "die":
        os._exit(3)
    return text(str(os.getpid()))


async def stream(*_):
    yield text(str(os.getpid()))
    await asyncio.Event().wait()


async def main(port):
    server = AgentServer(
        AGENT,
        [service(unary=unary, stream=stream)],
        ServerOptions(address=f"127.0.0.1:{port}", reuse_port=True),
        metrics=Metrics().for_agent(AGENT),
    )
    await run([server], AsyncExitStack(), DrainOptions(0, 10))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
