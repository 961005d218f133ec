"""`faiss://`: exact search while a collection is small, an inverted file with 8-bit codes beyond.

A process has, for each collection and model that it has searched, a base (a file that only the knowledge agent writes, mapped into memory; or nothing) and a tail (all
vectors since the base's revision, exact, in memory), which catches up from the graph before each search. When the tail has outgrown the base, a later base
is opened if there is one. So a process sees what another one has committed, and a file that is missing, damaged or old costs time, never a result.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The driver's types are partly unknown; what it returns is checked where it enters.

import asyncio
import hashlib
import json
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from collections.abc import Collection as Group
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.vector.query import require_comparable
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, CollectionNotFound, LoremeshError
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore, VectorChanges

_log = logging.getLogger(__name__)

_FORMAT = 3
_PAGE = 20_000
_MOST_OPEN = 16
_PROBES = 32
_POINTS_PER_LIST = 64
_MOST_LISTS = 4096
_GROWTH = 2
"""How many times its lists a base may need before it is trained anew."""
_MOST_SAMPLED = 40 * _MOST_LISTS
"""Vectors that a base is trained with: the driver wants 39 a list."""
_BASED_PER_TAIL = 50
"""Vectors in a base for each in the tail, at the least: more of these cost a question more than the rest of the search, fewer have the file written too often."""
_SPARE = 32
_RENEWAL_SECONDS = 600.0
_LOOKS_APART = 2.0
"""Seconds between two looks for a later base: where none is written, each search would look for one."""
_SUFFIXES = frozenset({".faiss", ".json"})


@dataclass(frozen=True, slots=True)
class _Manifest:
    collection_uid: str
    model: str
    revision: int
    count: int
    dimension: int


class _Vectors(NamedTuple):
    """The vectors of a collection of one model."""

    collection: str
    model: str


class _Collection:
    """What one process holds of the vectors of one collection."""

    def __init__(self, uid: str, base: Any | None, revision: int, dimension: int) -> None:
        self.uid = uid
        self.revision = revision
        self.base = base
        self.base_revision = revision
        self.looked = -math.inf
        """When a later base was last looked for, in monotonic seconds."""
        self.dimension = dimension
        self.base_removed: set[int] = set()
        self.tail_refs = np.zeros(0, dtype=np.int64)
        self.tail = np.zeros((0, dimension), dtype=np.float32)
        self.lock = asyncio.Lock()

    def apply(self, removed: Sequence[int], added: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Takes changes; the arrays are replaced, never changed, for a search may be reading them."""
        if removed:
            if self.base is not None:
                self.base_removed = self.base_removed | set(removed)
            kept = ~np.isin(self.tail_refs, np.fromiter(removed, dtype=np.int64))
            if not kept.all():
                self.tail_refs, self.tail = self.tail_refs[kept], self.tail[kept]
        if added:
            if not self.dimension:
                self.tail = np.zeros((0, vectors.shape[1]), dtype=np.float32)
                self.dimension = vectors.shape[1]
            fresh = ~np.isin(np.fromiter(added, dtype=np.int64), self.tail_refs)
            self.tail_refs = np.concatenate([self.tail_refs, np.fromiter(added, dtype=np.int64)[fresh]])
            self.tail = np.concatenate([self.tail, vectors[fresh]])

    def search(self, vector: NDArray[np.float32], limit: int) -> list[tuple[float, int]]:
        """Nearest passages with their similarities, not sorted."""
        found: list[tuple[float, int]] = []
        if self.base is not None:
            similarities, refs = self.base.search(
                vector[None, :], limit + _SPARE, params=_search_parameters(self.base_removed)
            )
            found += [
                (float(similarity), int(ref))
                for similarity, ref in zip(similarities[0], refs[0], strict=True)
                if ref >= 0
            ]
        if len(self.tail_refs):
            similarities = self.tail @ vector
            best = np.argpartition(-similarities, min(limit, len(similarities) - 1))[:limit]
            found += [(float(similarities[row]), int(self.tail_refs[row])) for row in best]
        return found


@dataclass(slots=True)
class _Sample:
    """Vectors of a collection that stand for all of them: every so many, more seldom the more there are."""

    count: int = 0
    step: int = 1
    vectors: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])

    def take(self, changes: VectorChanges) -> None:
        """Takes some of a page."""
        if not changes.added:
            return
        self.vectors.append(changes.vectors[-self.count % self.step :: self.step].copy())
        self.count += len(changes.added)
        if sum(map(len, self.vectors)) > _MOST_SAMPLED:
            self.vectors = [np.concatenate(self.vectors)[::2].copy()]
            self.step *= 2


def _lists(count: int) -> int:
    """How many lists a base of so many vectors has."""
    return max(1, min(_MOST_LISTS, count // _POINTS_PER_LIST))


def _trained(sample: _Sample) -> Any:
    """An empty base that fits the vectors of a sample."""
    vectors = np.concatenate(sample.vectors)
    index = faiss.index_factory(vectors.shape[1], f"IVF{_lists(sample.count)},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    return index


def _change(index: Any, removed: Group[int], added: Sequence[int] | NDArray[np.int64], vectors: Any) -> None:
    if len(removed) and index.ntotal:
        index.remove_ids(np.fromiter(removed, dtype=np.int64))
    if len(added):
        index.add_with_ids(vectors, np.asarray(added, dtype=np.int64))


def _mapped(path: str) -> Any:
    """A base whose lists are mapped into memory."""
    index: Any = faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    lists: Any = faiss.downcast_InvertedLists(index.invlists)
    # Else the driver starts 32 threads for every search, to read ahead: ten times what the search itself takes.
    lists.prefetch_nthread = 0
    return index


@asynccontextmanager
async def _locked(lock: asyncio.Lock, deadline: Deadline) -> AsyncGenerator[None]:
    """Holds a lock; whoever has it may have more time than this caller."""
    try:
        async with asyncio.timeout(deadline.remaining()):
            await lock.acquire()
    except TimeoutError:
        raise BudgetExhausted("vector index", "search") from None
    try:
        yield
    finally:
        lock.release()


def _checksum(index: Path, manifest: _Manifest) -> str:
    """Of a base and what its manifest says of it: a wrong revision would hide changes."""
    digest = hashlib.sha256(json.dumps(asdict(manifest)).encode())
    with index.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _search_parameters(removed: Group[int]) -> Any:
    """How to search a base: what is removed takes no place among the nearest."""
    # With arguments it keeps the selector alive, which an assignment would not; the driver's types do not know them.
    parameters: Any = faiss.SearchParametersIVF
    if not removed:
        return parameters(nprobe=_PROBES)
    gone = faiss.IDSelectorBatch(np.fromiter(removed, dtype=np.int64))
    return parameters(nprobe=_PROBES, sel=faiss.IDSelectorNot(gone))


class FaissVectorIndex:
    """See `ports.vectors.VectorIndex`.

    Args:
        graph: Where vectors come from.
        folder: Folder of the bases.
        exact_limit: Vectors up to which a collection gets no base.
        threads: Searches that run at once.
    """

    def __init__(self, graph: GraphStore, folder: Path, *, exact_limit: int = 4_000, threads: int = 2) -> None:
        self._graph = graph
        self._folder = folder
        self._exact_limit = exact_limit
        self._open: OrderedDict[_Vectors, _Collection] = OrderedDict()
        self._renewing: dict[_Vectors, asyncio.Task[None]] = {}
        # One query uses one core: throughput comes from searching several at once. The driver counts for each thread of ours.
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix="faiss", initializer=faiss.omp_set_num_threads, initargs=(1,)
        )

    async def search(
        self,
        vector: NDArray[np.float32],
        *,
        model: str,
        revisions: tuple[CollectionRevision, ...],
        limit: int,
        deadline: Deadline,
    ) -> tuple[PassageRef, ...]:
        """See the port."""
        found: list[tuple[float, int]] = []
        for revision in revisions:
            collection = await self._caught_up(revision, model, deadline)
            if collection.dimension:
                require_comparable(vector, collection.dimension, revision.collection)
            found += await self._run(collection.search, vector, limit, deadline=deadline)
            self._renew(_Vectors(revision.collection, model), collection)
        found.sort(key=lambda pair: (-pair[0], pair[1]))
        return tuple(PassageRef(ref) for _, ref in found[:limit])

    async def maintain(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port. A base is written anew when the tail has outgrown a fiftieth of it; so is that of a second model."""
        current, models = await self._current(collection, deadline)
        reached: list[int] = []
        for model in models:
            held = await self._caught_up(current, model, deadline)
            if self._outgrown(held):
                held = await self._extend(current, model, held, deadline) or await self._rebuild(
                    current, model, deadline
                )
            reached.append(held.revision)
        return replace(current, revision=min(reached))

    def _outgrown(self, held: _Collection) -> bool:
        """Whether there is too much beside the base: the tail is searched exactly, and in memory."""
        based = held.base.ntotal if held.base is not None else 0
        return len(held.tail_refs) > max(self._exact_limit, based // _BASED_PER_TAIL) or len(held.base_removed) > max(
            based // 2, 1
        )

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port."""
        current, models = await self._current(collection, deadline)
        rebuilt = [await self._rebuild(current, model, deadline) for model in models]
        return replace(current, revision=min(held.revision for held in rebuilt))

    async def _current(self, collection: str, deadline: Deadline) -> tuple[CollectionRevision, tuple[str, ...]]:
        """The collection's state and the models of its vectors; what is held and stored of others goes."""
        found = await self._graph.vectors(collection, deadline=deadline)
        models = found.whole
        for vectors in [key for key in self._open if key.collection == collection and key.model not in models]:
            del self._open[vectors]
        await self._run(self._forget, collection, models, deadline=deadline)
        return found.reached, models

    async def _rebuild(self, current: CollectionRevision, model: str, deadline: Deadline) -> _Collection:
        vectors = _Vectors(current.collection, model)
        sample = await self._sample(current, model, deadline)
        if sample.count > self._exact_limit:
            index = await self._run(_trained, sample, deadline=deadline)
            reached = 0
            async for changes in self._changes(current, model, deadline):
                await self._run(_change, index, changes.removed, changes.added, changes.vectors, deadline=deadline)
                reached = changes.revision
            return await self._replace(vectors, index, current.collection_uid, reached, deadline)
        await self._run(self._remove, vectors, deadline=deadline)
        fresh = _Collection(current.collection_uid, None, 0, 0)
        await self._catch_up(fresh, current, model, deadline)
        self._open[vectors] = fresh
        return fresh

    async def _extend(
        self, current: CollectionRevision, model: str, held: _Collection, deadline: Deadline
    ) -> _Collection | None:
        """Adds the tail to the base; None where this needs to be trained anew, with more lists or because most of it is gone."""
        vectors = _Vectors(current.collection, model)
        # All at once: a search may bring what is held up to date meanwhile.
        removed, added, tail, revision = held.base_removed, held.tail_refs, held.tail, held.revision
        if held.base is None or len(removed) > held.base.ntotal // 2:
            return None
        if _lists(held.base.ntotal + len(added)) > _GROWTH * held.base.nlist:
            return None
        index = await self._run(self._stored, vectors, held.uid, held.base_revision, deadline=deadline)
        if index is None:
            return None
        await self._run(_change, index, removed, added, tail, deadline=deadline)
        return await self._replace(vectors, index, held.uid, revision, deadline)

    async def _replace(self, vectors: _Vectors, index: Any, uid: str, revision: int, deadline: Deadline) -> _Collection:
        """Writes a base and opens it."""
        manifest = _Manifest(uid, vectors.model, revision, index.ntotal, index.d)
        await self._run(self._write, vectors, index, manifest, deadline=deadline)
        fresh: _Collection = await self._run(self._load, vectors, uid, deadline=deadline)
        self._open[vectors] = fresh
        return fresh

    def _renew(self, vectors: _Vectors, held: _Collection) -> None:
        """Has the base opened that the knowledge agent may have written since, while questions go on with what is held."""
        if vectors not in self._renewing and self._outgrown(held) and time.monotonic() - held.looked > _LOOKS_APART:
            held.looked = time.monotonic()
            self._renewing[vectors] = renewing = asyncio.create_task(self._renewed(vectors, held))
            renewing.add_done_callback(lambda _: self._renewing.pop(vectors, None))

    async def _renewed(self, vectors: _Vectors, held: _Collection) -> None:
        deadline = Deadline.after(_RENEWAL_SECONDS)
        try:
            fresh = await self._run(self._newer, vectors, held.uid, held.base_revision, deadline=deadline)
            if fresh is None:
                return
            reached = CollectionRevision(vectors.collection, held.uid, held.revision)
            await self._catch_up(fresh, reached, vectors.model, deadline)
        except LoremeshError as error:
            _log.warning("the vector index of %s goes on with an old file: %s", vectors.collection, error)
            return
        if self._open.get(vectors) is held:
            self._open[vectors] = fresh

    async def _sample(self, revision: CollectionRevision, model: str, deadline: Deadline) -> _Sample:
        """Vectors to train a base with, of bounded memory however many there are."""
        sample = _Sample()
        async for changes in self._changes(revision, model, deadline):
            sample.take(changes)
        return sample

    async def _changes(
        self, revision: CollectionRevision, model: str, deadline: Deadline
    ) -> AsyncGenerator[VectorChanges]:
        """All vectors of a collection, page by page, up to a revision; none of one that was deleted meanwhile."""
        reached = 0
        while reached < revision.revision:
            try:
                changes = await self._graph.vector_changes(
                    revision.collection, model=model, after_revision=reached, limit=_PAGE, deadline=deadline
                )
            except CollectionNotFound:
                return
            if changes.collection_uid != revision.collection_uid:
                return
            yield changes
            reached = changes.revision

    async def drop(self, collection: str, *, deadline: Deadline) -> None:
        """See the port."""
        for vectors in [key for key in self._open if key.collection == collection]:
            del self._open[vectors]
        await self._run(self._forget, collection, (), deadline=deadline)

    async def recover(self, *, deadline: Deadline) -> None:
        """See the port. Each process catches up by itself when it searches."""

    async def close(self) -> None:
        """See the port."""
        renewing = list(self._renewing.values())
        for task in renewing:
            task.cancel()
        await asyncio.gather(*renewing, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._open.clear()

    async def _caught_up(self, revision: CollectionRevision, model: str, deadline: Deadline) -> _Collection:
        vectors = _Vectors(revision.collection, model)
        held = self._open.get(vectors)
        if held is None or held.uid != revision.collection_uid:
            held = await self._run(self._load, vectors, revision.collection_uid, deadline=deadline)
            other = self._open.get(vectors)
            if other is not None and other.uid == revision.collection_uid:
                held = other
            self._open[vectors] = held
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(vectors)
        if held.revision < revision.revision:
            await self._catch_up(held, revision, model, deadline)
        return held

    async def _catch_up(self, held: _Collection, revision: CollectionRevision, model: str, deadline: Deadline) -> None:
        async with _locked(held.lock, deadline):
            while held.revision < revision.revision:
                try:
                    changes = await self._graph.vector_changes(
                        revision.collection,
                        model=model,
                        after_revision=held.revision,
                        limit=_PAGE,
                        deadline=deadline,
                    )
                except CollectionNotFound:
                    return
                if changes.collection_uid != held.uid:
                    # Deleted meanwhile: what is held of it is of no use to anybody.
                    return
                held.apply(changes.removed, changes.added, changes.vectors)
                held.revision = changes.revision

    async def _run(self, work: Any, *arguments: Any, deadline: Deadline) -> Any:
        running = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await running
        except TimeoutError:
            raise BudgetExhausted("vector index", "search") from None

    def _paths(self, vectors: "_Vectors") -> tuple[Path, Path]:
        name = f"{_hashed(vectors.collection)}-{_hashed(vectors.model)}"
        return self._folder / f"{name}.faiss", self._folder / f"{name}.json"

    def _load(self, vectors: "_Vectors", uid: str) -> _Collection:
        """The base, if there is a good one of this uid; else an empty tail to be filled from the graph."""
        found = self._read(vectors, uid, _mapped)
        if found is None:
            return _Collection(uid, None, 0, 0)
        index, manifest = found
        return _Collection(uid, index, manifest.revision, manifest.dimension)

    def _newer(self, vectors: "_Vectors", uid: str, revision: int) -> _Collection | None:
        """The base, if it is of a later revision."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            # First what is said of it: the checksum of a large base takes a second.
            if json.loads(self._paths(vectors)[1].read_text())["revision"] > revision:
                found = self._load(vectors, uid)
                return found if found.base_revision > revision else None
        return None

    def _stored(self, vectors: "_Vectors", uid: str, revision: int) -> Any | None:
        """The base of a revision, in memory so that it can be changed; None where another one is stored."""
        found = self._read(vectors, uid, faiss.read_index)
        return found[0] if found is not None and found[1].revision == revision else None

    def _read(self, vectors: "_Vectors", uid: str, read: Callable[[str], Any]) -> tuple[Any, _Manifest] | None:
        """What is stored of a collection of this uid; None where there is nothing, or nothing that can be read."""
        index_path, manifest_path = self._paths(vectors)
        try:
            values = json.loads(manifest_path.read_text())
            if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
                raise ValueError("it is of another format")
            checksum = values.pop("sha256", None)
            manifest = _Manifest(**values)
            if (manifest.collection_uid, manifest.model) != (uid, vectors.model):
                return None
            if _checksum(index_path, manifest) != checksum:
                raise ValueError("its checksum is wrong")
            return read(str(index_path)), manifest
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            _log.warning("the vector index %s is not read, and made again from the graph: %s", index_path, error)
            return None

    def _write(self, vectors: "_Vectors", index: Any, manifest: _Manifest) -> None:
        """Writes a base; readers see the old one or the new one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        index_path, manifest_path = self._paths(vectors)
        temporary = index_path.with_name(f"{index_path.name}.{os.getpid()}")
        faiss.write_index(index, str(temporary))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        values = {"format": _FORMAT, **asdict(manifest), "sha256": _checksum(temporary, manifest)}
        # First the index: a reader that meets it under the old manifest sees a wrong checksum and goes to the graph.
        temporary.replace(index_path)
        draft = manifest_path.with_name(f"{manifest_path.name}.{os.getpid()}")
        draft.write_text(json.dumps(values))
        draft.replace(manifest_path)

    def _remove(self, vectors: "_Vectors") -> None:
        for path in reversed(self._paths(vectors)):
            path.unlink(missing_ok=True)

    def _forget(self, collection: str, kept_models: Group[str]) -> None:
        """Removes a collection's bases but for those of some models; those of earlier formats as well."""
        kept = {path for model in kept_models for path in self._paths(_Vectors(collection, model))}
        for path in self._folder.glob(f"{_hashed(collection)}*"):
            if path not in kept and path.suffix in _SUFFIXES:
                path.unlink(missing_ok=True)


def _hashed(name: str) -> str:
    # The name comes from outside; what it may look like is the contract's affair, not this folder's.
    return hashlib.sha256(name.encode()).hexdigest()[:32]
