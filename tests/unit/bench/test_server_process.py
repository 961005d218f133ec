"""Servers that tests and benchmarks start, and that must not outlive them."""

import asyncio
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.engines.servers.process import ServerProcess

FOR_EVER = (sys.executable, "-c", "import threading; threading.Event().wait()")


async def test_a_server_that_is_given_up_while_it_starts_is_ended_at_once(tmp_path: Path) -> None:
    asked = threading.Event()

    def never() -> bool:
        asked.set()
        return False

    server = ServerProcess(FOR_EVER, tmp_path, never, seconds=3600)
    waiting = asyncio.create_task(asyncio.to_thread(server.wait_until_ready))
    await asyncio.to_thread(asked.wait)
    server.stop()
    with pytest.raises(RuntimeError, match="does not serve"):
        await waiting
    assert not psutil.pid_exists(server.pid)


def test_a_server_is_ended_where_the_wait_for_it_is_broken_off(tmp_path: Path) -> None:
    def interrupted() -> bool:
        raise KeyboardInterrupt

    server = ServerProcess(FOR_EVER, tmp_path, interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.wait_until_ready()
    assert not psutil.pid_exists(server.pid)
