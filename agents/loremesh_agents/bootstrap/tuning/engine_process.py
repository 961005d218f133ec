"""An engine that is started to be measured, in a process group of its own."""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_GRACE_SECONDS = 15.0
_GPU_SECONDS = 10.0
_TAIL_BYTES = 16_384
_MEGABYTE = 1 << 20
_MOST_WORDS = 300
# A line with an address is a hint where to read on about the error before it.
_TELLING = re.compile(r"(?!.*://).*(error|exception|refused|cannot|failed|not enough|out of memory)", re.IGNORECASE)


class EngineStart(Exception):
    """The engine does not serve; the message says why."""


class EngineProcess:
    """A running engine.

    Args:
        process: Its first process, the leader of the group.
        log: What it writes.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def ended(self) -> bool:
        """Whether its first process is gone."""
        return self._process.returncode is not None

    async def ends_within(self, seconds: float) -> bool:
        """Whether its first process ends within a time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return self.ended

    async def last_words(self) -> str:
        """The last line of its output that tells of an error, else the last one, with its exit code where it has ended."""
        text = await asyncio.to_thread(_tail, self._log)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = next(
            (line for line in reversed(lines) if _TELLING.match(line)), lines[-1] if lines else "it said nothing"
        )
        said = said[:_MOST_WORDS]
        code = self._process.returncode
        return said if code is None else f"exit code {code}: {said}"

    async def resident_megabytes(self) -> float | None:
        """Memory of all its processes, pages that they share counted in each; None where the system has no /proc."""
        return await asyncio.to_thread(_resident_megabytes, self._process.pid)

    async def stop(self) -> None:
        """Ends the whole group, at last by force."""
        group = self._process.pid
        if self._process.returncode is None:
            _signal(group, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_SECONDS):
                    await self._process.wait()
        # Workers outlive an engine that was killed, and hold its memory.
        if self._process.returncode is None or await asyncio.to_thread(_has_members, group):
            _signal(group, signal.SIGKILL)
        await self._process.wait()


@asynccontextmanager
async def engine_process(command: Sequence[str], log: Path) -> AsyncGenerator[EngineProcess]:
    """Runs an engine within the block.

    Args:
        command: Program and arguments; no shell sees them.
        log: File that takes its output.

    Raises:
        EngineStart: The program cannot be run.
    """
    with log.open("wb") as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineStart(f"{command[0]} cannot be run: {error.strerror}") from None
    engine = EngineProcess(process, log)
    try:
        yield engine
    finally:
        # Also where the command is being interrupted: nothing may be left behind.
        await asyncio.shield(asyncio.ensure_future(engine.stop()))


async def gpu_megabytes() -> float | None:
    """Memory in use on all GPUs together; None where there is no nvidia-smi, or it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ("--query-gpu=memory.used", "--format=csv,noheader,nounits")
    process = await asyncio.create_subprocess_exec(
        program,
        *query,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_GPU_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    try:
        return sum(float(line) for line in said.decode().split()) if process.returncode == 0 else None
    except ValueError:
        return None


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def _members(group: int) -> dict[int, int]:
    """Resident pages by process, of a process group."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything; what follows it are the state, the parent, the group, and so on.
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found[int(entry.name)] = int(fields[21])
        except (OSError, IndexError, ValueError):
            continue  # it has ended meanwhile
    return found


def _has_members(group: int) -> bool:
    return bool(_members(group))


def _resident_megabytes(group: int) -> float | None:
    if not Path("/proc/self/stat").exists():
        return None
    return sum(_members(group).values()) * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE
