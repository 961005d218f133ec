"""Documents to passages with their words and names: the half of the work of an ingestion that needs no store."""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait

from loremesh_agents.domain.document import Document, PassageWrite
from loremesh_agents.domain.passages import analyse, cut, full_text

_log = logging.getLogger(__name__)

Analysed = tuple[dict[int, tuple[PassageWrite, ...]], list[str]]
_MANY = 64


class Analysis:
    """Analyses documents: a few in a thread, many in a process beside, so that they leave the interpreter to the writer.

    Args:
        seconds: Time that the process may take for documents; then it is killed, and a thread does its work.
    """

    def __init__(self, *, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._processes: ProcessPoolExecutor | None = None
        self._started: Future[int] | None = None

    @property
    def beside(self) -> bool:
        """Whether the process is there: until it has started, threads do its work."""
        return self._started is not None and self._started.done()

    async def analyse(self, documents: Mapping[int, Document]) -> Analysed:
        """The passages of documents, by the keys given, and the texts to encode in the same order."""
        processes = self._ready() if len(documents) >= _MANY else None
        if processes is not None and self._started is not None:
            process = self._started
            try:
                async with asyncio.timeout(self._seconds):
                    return await asyncio.get_running_loop().run_in_executor(processes, analysed, documents)
            except TimeoutError:
                _log.warning("the process that analyses documents took more than %.0f s; it is killed", self._seconds)
                with suppress(ProcessLookupError):
                    os.kill(process.result(), signal.SIGKILL)
                self.close()
            except BrokenProcessPool:
                _log.warning("the process that analyses documents has died; another is started")
                self.close()
        return await asyncio.to_thread(analysed, documents)

    def _ready(self) -> ProcessPoolExecutor | None:
        """The process, once it has started; None until then, and on a machine with one core."""
        if self._processes is None and len(os.sched_getaffinity(0)) > 1:
            # Forked children would inherit the event loop's and gRPC's threads in whatever state they are.
            context = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
            self._started = self._processes.submit(os.getpid)
        return self._processes if self.beside else None

    def close(self) -> None:
        """Ends the process."""
        if self._processes is not None:
            self._processes.shutdown(wait=False, cancel_futures=True)
        self._processes = self._started = None


def analysed(documents: Mapping[int, Document]) -> Analysed:
    """What `Analysis.analyse` gives."""
    found: dict[int, tuple[PassageWrite, ...]] = {}
    texts: list[str] = []
    for place, document in documents.items():
        passages = cut(document)
        found[place] = tuple(analyse(document, passage) for passage in passages)
        texts += [full_text(document.title, passage.headings, passage.text) for passage in passages]
    return found, texts


def _end_with_parent() -> None:
    """An agent that is killed cannot end its process, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
