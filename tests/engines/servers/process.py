"""A server in a process group of its own."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def free_port(address: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def accepts(port: int, address: str = "127.0.0.1") -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


class ServerProcess:
    """A server from its start until it is stopped. Who starts it owns it, before it waits until it serves.

    Args:
        command: Program and arguments.
        folder: Where it runs; its output goes to `server.log` there.
        ready: Whether it serves.
        seconds: How long it may take until it does.
        environment: Variables besides ours.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        ready: Callable[[], bool],
        *,
        seconds: float = 180.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._ready = ready
        self._seconds = seconds
        self._log = folder / "server.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Returns when it serves; where it does not, it is ended. A thread that waits is set free by `stop` and `kill`.

        Raises:
            RuntimeError: It has ended, or its time is over.
        """
        end = time.monotonic() + self._seconds
        try:
            while not self._ready():
                if self._process.poll() is not None or time.monotonic() > end:
                    tail = self._log.read_text(encoding="utf-8", errors="replace")[-4000:]
                    raise RuntimeError(f"{self._command[0]} in {self._log.parent} does not serve:\n{tail}")
                time.sleep(0.1)  # the server says nowhere that it is ready
        except BaseException:
            # Also where a test's time is over.
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the whole group."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def stop(self, seconds: float = 20.0) -> None:
        """Ends it, at last by force."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.signal(signal.SIGKILL)
        self._process.wait()
