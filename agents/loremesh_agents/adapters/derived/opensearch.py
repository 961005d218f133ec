"""OpenSearch as a place for indexes: one index there for all collections, whose documents say which one they are of.

One index a collection would cost a shard, and memory of the cluster's state, for each of many small ones. The price is that a deleted
collection's documents are searched for and removed one by one; nobody asks for them meanwhile.

A passage's document has the id `{shelf}-{handle}` and version 1, and its removal version 2: so a page that comes late or twice brings nothing back. A
shelf's state has the id `state-{shelf}` and its revision as version. It is read by id, which OpenSearch answers from its log, so
it needs no refresh; the passages have had one by then.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The driver gives what the server said, as Any; what is needed of it is picked here.

import asyncio
import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from collections.abc import Collection as Group
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import orjson
from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import (
    AuthenticationException,
    AuthorizationException,
    ConnectionTimeout,
    OpenSearchException,
    TransportError,
)

from loremesh_agents.adapters.derived.keeping import AnyPage, IndexState
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, StorageFull
from loremesh_agents.domain.retrieval import PassageRef

_log = logging.getLogger(__name__)

_BACKEND = "opensearch"
_CONNECTIONS = 16
_BULK_BYTES = 900_000
"""Of one request: larger ones would hold the event loop up while they are sent."""
_REMOVED_AT_ONCE = 2_000
_LONGEST_WORD = 8191
_ADDED, _REMOVED = 1, 2
_STATE_FIELDS = {
    "uid": {"type": "keyword"},
    "collection": {"type": "keyword"},
    "revision": {"type": "long"},
    "dimension": {"type": "integer"},
}


@dataclass(frozen=True, slots=True)
class OpenSearchServers:
    """Where OpenSearch is.

    Attributes:
        urls: Of its nodes, as in `https://search:9200`.
        user: Who logs in; empty for nobody.
        password: With which password.
        ca: PEM file of the authorities that its certificates come from; None for those of the machine.
    """

    urls: tuple[str, ...]
    user: str = ""
    password: str = ""
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class OpenSearchIndex:
    """An index.

    Attributes:
        name: Its name.
        format: Number of the way in which we use it; it is kept in the index.
        properties: What its documents have besides `uid` (the shelf), `stamp` and `state`.
        settings: Those that it is created with.
    """

    name: str
    format: int
    properties: Mapping[str, Any]
    settings: Mapping[str, Any]


class OpenSearchConnection:
    """The driver, with our deadlines and errors.

    Args:
        servers: Where to.
    """

    def __init__(self, servers: OpenSearchServers) -> None:
        secure = any(url.startswith("https:") for url in servers.urls)
        context = ssl.create_default_context(cafile=servers.ca) if secure else None
        self._client = AsyncOpenSearch(
            hosts=list(servers.urls),
            http_auth=(servers.user, servers.password) if servers.user else None,
            # Of several nodes the next one is asked where one cannot be reached, which then rests for a while.
            max_retries=len(servers.urls) - 1,
            retry_on_status=(502, 503),
            maxsize=_CONNECTIONS,
            ssl_context=context,
        )
        self._urls = ", ".join(servers.urls)

    async def ask(
        self,
        method: str,
        path: Sequence[str],
        *,
        body: Any = None,
        parameters: Mapping[str, Any] | None = None,
        expected: tuple[int, ...] = (),
        stage: str,
        deadline: Deadline,
    ) -> Any:
        """What the server says.

        Args:
            method: Of HTTP.
            path: The parts of the path: constants and names of indexes.
            body: Bytes, or what becomes JSON.
            parameters: Of the query.
            expected: Status codes of failure whose answer is to be given as well.
            stage: What an error says was being done.
            deadline: When to give up.

        Raises:
            BackendUnavailable: It cannot be reached, refuses us or our request, or is overloaded.
            StorageFull: It takes nothing more.
            BudgetExhausted: The deadline passed.
        """
        async with self._translated(stage, deadline):
            return await self._client.transport.perform_request(
                method,
                "/" + "/".join(path),
                params={**(parameters or {}), "ignore": expected} if expected else dict(parameters or {}),
                body=body,
                timeout=deadline.remaining(),
                headers={"content-type": "application/x-ndjson" if isinstance(body, bytes) else "application/json"},
            )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    @asynccontextmanager
    async def _translated(self, stage: str, deadline: Deadline) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(deadline.remaining()):
                yield
        except (TimeoutError, ConnectionTimeout):
            raise BudgetExhausted(_BACKEND, stage) from None
        except (AuthenticationException, AuthorizationException) as error:
            if _full(error.info):
                raise StorageFull(_BACKEND) from error
            _log.error("OpenSearch at %s refuses the user or the password: %s", self._urls, error)
            raise BackendUnavailable(_BACKEND) from error
        except TransportError as error:
            if _full(error.info):
                raise StorageFull(_BACKEND) from error
            _log.warning("OpenSearch at %s fails at %s: %s", self._urls, stage, error)
            raise BackendUnavailable(_BACKEND) from error
        except OpenSearchException as error:
            _log.error("OpenSearch at %s answers in another way than it should: %s", self._urls, error)
            raise BackendUnavailable(_BACKEND) from error


class OpenSearchStore(ABC, Generic[AnyPage]):
    """An `IndexStore` in OpenSearch, for indexes whose pages have passages in `removed`.

    Args:
        connection: To the server.
        index: What to keep.
    """

    def __init__(self, connection: OpenSearchConnection, index: OpenSearchIndex) -> None:
        self._connection = connection
        self._index = index
        self._checked = False
        self._missing = False

    @property
    def name(self) -> str:
        """See `IndexStore`."""
        return f"opensearch index {self._index.name}"

    @abstractmethod
    def entries(self, page: AnyPage) -> Iterator[tuple[PassageRef, Mapping[str, Any]]]:
        """The passages that a page adds, with the fields of their documents."""

    @abstractmethod
    def removed(self, page: AnyPage) -> Sequence[PassageRef]:
        """The passages that a page removes."""

    async def widen(self, state: IndexState, page: AnyPage, *, deadline: Deadline) -> IndexState:
        """What has to be done before a page can be taken; gives the state that follows, but for its revision."""
        del page, deadline
        return state

    async def prepare(self, *, replacing: bool, deadline: Deadline) -> bool:
        """See `IndexStore`."""
        found = await self._format(deadline)
        if found is not None and found != self._index.format and replacing:
            await self._ask("DELETE", (self._index.name,), expected=(404,), stage="making it anew", deadline=deadline)
            found = None
        made = found is None
        if made:
            answer = await self._ask(
                "PUT",
                (self._index.name,),
                body={"settings": self._index.settings, "mappings": self._mapping()},
                expected=(400,),
                stage="creating",
                deadline=deadline,
            )
            if "error" in answer and answer["error"].get("type") != "resource_already_exists_exception":
                _log.error("OpenSearch does not create the index %s: %s", self._index.name, answer["error"])
                raise BackendUnavailable(self.name)
            found = await self._format(deadline)
        self._require_format(found)
        return made

    async def states(self, shelves: Group[str] | None, *, deadline: Deadline) -> Mapping[str, IndexState]:
        """See `IndexStore`."""
        if shelves is None:
            return await self._all_states(deadline)
        if not shelves:
            return {}
        if not self._checked:
            found = await self._format(deadline)
            if found is None:
                return self._say_missing()
            self._require_format(found)
        answer = await self._read_states(shelves, deadline)
        documents = answer.get("docs", [])
        if "error" in answer or any("error" in document for document in documents):
            return self._say_missing()
        return _states(documents)

    async def apply(self, state: IndexState, page: AnyPage, *, stamp: int, deadline: Deadline) -> IndexState:
        """See `IndexStore`."""
        state = await self.widen(state, page, deadline=deadline)
        batches = self._batches(state.shelf, page, stamp)
        while batch := await asyncio.to_thread(next, batches, b""):
            await self._bulk(batch, deadline)
        await self._refresh(deadline)
        return IndexState(state.shelf, state.collection, page.revision, state.dimension)

    async def note(self, state: IndexState, *, deadline: Deadline) -> None:
        """See `IndexStore`."""
        noted = {
            "uid": state.shelf,
            "collection": state.collection,
            "revision": state.revision,
            "dimension": state.dimension,
        }
        await self._ask(
            "PUT",
            (self._index.name, "_doc", f"state-{state.shelf}"),
            body={"state": noted},
            parameters={"version": state.revision, "version_type": "external_gte"},
            expected=(409,),
            stage="noting the state",
            deadline=deadline,
        )

    async def remove(self, shelf: str, *, stamped_before: int | None = None, deadline: Deadline) -> None:
        """See `IndexStore`. What is removed with its shelf may come back with one of its name."""
        if stamped_before is not None:
            older = {"range": {"stamp": {"lt": stamped_before}}}
            await self._ask(
                "POST",
                (self._index.name, "_delete_by_query"),
                body={"query": {"bool": {"filter": [{"term": {"uid": shelf}}, older]}}},
                parameters={"conflicts": "proceed", "refresh": "true"},
                expected=(404,),
                stage="removing",
                deadline=deadline,
            )
            return
        state = _states((await self._read_states([shelf], deadline)).get("docs", [])).get(shelf)
        await self._refresh(deadline, expected=(404,))
        while found := await self._some_of(shelf, deadline):
            # A removal of version 2 would be the last word for as long as the server remembers it.
            actions = [{"delete": {"_id": id_, "version": _ADDED, "version_type": "external_gte"}} for id_ in found]
            await self._bulk(b"\n".join([*map(orjson.dumps, actions), b""]), deadline)
            await self._refresh(deadline)
        if state is not None:
            await self._ask(
                "DELETE",
                (self._index.name, "_doc", f"state-{shelf}"),
                parameters={"version": state.revision, "version_type": "external_gte"},
                expected=(404, 409),
                stage="removing",
                deadline=deadline,
            )

    async def _some_of(self, shelf: str, deadline: Deadline) -> list[str]:
        """Ids of some of the documents of a shelf."""
        answer = await self._ask(
            "POST",
            (self._index.name, "_search"),
            body={"query": {"term": {"uid": shelf}}, "size": _REMOVED_AT_ONCE, "_source": False},
            parameters={"allow_partial_search_results": "false"},
            expected=(404,),
            stage="removing",
            deadline=deadline,
        )
        return [hit["_id"] for hit in answer.get("hits", {}).get("hits", [])]

    async def search(self, query: Mapping[str, Any], *, limit: int, deadline: Deadline) -> tuple[PassageRef, ...]:
        """The passages that a query finds, the best first."""
        answer = await self._ask(
            "POST",
            (self._index.name, "_search"),
            body={
                "query": query,
                "size": limit,
                "_source": False,
                "track_total_hits": False,
                # So that the server, too, stops when nobody waits any more.
                "timeout": f"{max(1, int(deadline.remaining() * 1000))}ms",
            },
            parameters={"allow_partial_search_results": "false", "filter_path": "timed_out,hits.hits._id,error"},
            expected=(404,),
            stage="searching",
            deadline=deadline,
        )
        if "error" in answer:
            self._say_missing()
            raise BackendUnavailable(self.name)
        if answer.get("timed_out"):
            raise BudgetExhausted(self.name, "searching")
        hits = answer.get("hits", {}).get("hits", [])
        return tuple(PassageRef(int(hit["_id"].rpartition("-")[2])) for hit in hits)

    async def add_property(self, name: str, field: Mapping[str, Any], *, deadline: Deadline) -> None:
        """Lets documents have another field."""
        await self._ask(
            "PUT",
            (self._index.name, "_mapping"),
            body={"properties": {name: field}},
            stage="adding a field",
            deadline=deadline,
        )

    async def _ask(self, method: str, path: Sequence[str], **options: Any) -> Any:
        return await self._connection.ask(method, path, **options)

    def _mapping(self) -> Mapping[str, Any]:
        return {
            "dynamic": "strict",
            "_meta": {"loremesh_format": self._index.format},
            # Nothing but states is read back.
            "_source": {"includes": ["state.*"]},
            "properties": {
                "uid": {"type": "keyword"},
                "stamp": {"type": "long"},
                "state": {"properties": _STATE_FIELDS},
                **self._index.properties,
            },
        }

    async def _format(self, deadline: Deadline) -> int | None:
        """The format of the index; None where there is none, 0 where we did not make it."""
        answer = await self._ask(
            "GET", (self._index.name, "_mapping"), expected=(404,), stage="looking at it", deadline=deadline
        )
        if "error" in answer:
            return None
        (found,) = answer.values()
        return int(found["mappings"].get("_meta", {}).get("loremesh_format", 0))

    def _require_format(self, found: int | None) -> None:
        self._checked = found == self._index.format
        self._missing = False
        if not self._checked:
            _log.error(
                "the OpenSearch index %s is of format %s, this build writes format %d: 'loremesh collections NAME --rebuild' makes it anew",
                *(self._index.name, found or "unknown", self._index.format),
            )
            raise BackendUnavailable(self.name)

    def _say_missing(self) -> Mapping[str, IndexState]:
        """Says once that there is no index; gives the states that it then has."""
        self._checked = False
        if not self._missing:
            self._missing = True
            _log.warning("there is no OpenSearch index %s until the knowledge agent makes it", self._index.name)
        return {}

    async def _read_states(self, shelves: Group[str], deadline: Deadline) -> Any:
        return await self._ask(
            "POST",
            (self._index.name, "_mget"),
            body={"ids": [f"state-{name}" for name in shelves]},
            expected=(404,),
            stage="reading states",
            deadline=deadline,
        )

    async def _bulk(self, batch: bytes, deadline: Deadline) -> None:
        answer = await self._ask(
            "POST",
            (self._index.name, "_bulk"),
            body=batch,
            parameters={"filter_path": "errors,items.*.status,items.*.error"},
            stage="writing",
            deadline=deadline,
        )
        if answer.get("errors"):
            self._require_taken(answer["items"])

    async def _refresh(self, deadline: Deadline, *, expected: tuple[int, ...] = ()) -> None:
        await self._ask(
            "POST", (self._index.name, "_refresh"), expected=expected, stage="refreshing", deadline=deadline
        )

    async def _all_states(self, deadline: Deadline) -> Mapping[str, IndexState]:
        found: dict[str, IndexState] = {}
        after: list[str] = []
        if await self._format(deadline) is None:
            return found
        await self._ask("POST", (self._index.name, "_refresh"), stage="reading states", deadline=deadline)
        while True:
            answer = await self._ask(
                "POST",
                (self._index.name, "_search"),
                body={
                    "query": {"exists": {"field": "state.uid"}},
                    "size": 1000,
                    "sort": [{"state.uid": "asc"}],
                    **({"search_after": after} if after else {}),
                },
                stage="reading states",
                deadline=deadline,
            )
            hits = answer["hits"]["hits"]
            if not hits:
                return found
            found |= _states([{**hit, "found": True} for hit in hits])
            after = hits[-1]["sort"]

    def _batches(self, shelf: str, page: AnyPage, stamp: int) -> Iterator[bytes]:
        """Requests of bounded size."""
        lines: list[bytes] = []
        size = 0
        for ref in self.removed(page):
            action = {"_id": f"{shelf}-{ref}", "version": _REMOVED, "version_type": "external_gte"}
            lines.append(orjson.dumps({"delete": action}))
            size += len(lines[-1])
            if size > _BULK_BYTES:
                yield b"\n".join([*lines, b""])
                lines, size = [], 0
        for ref, fields in self.entries(page):
            action = {"_id": f"{shelf}-{ref}", "version": _ADDED, "version_type": "external_gte"}
            lines.append(orjson.dumps({"index": action}))
            content = {"uid": shelf, "stamp": stamp, **fields}
            lines.append(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
            size += len(lines[-1])
            if size > _BULK_BYTES:
                yield b"\n".join([*lines, b""])
                lines, size = [], 0
        if lines:
            yield b"\n".join([*lines, b""])

    def _require_taken(self, items: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
        for item in items:
            (result,) = item.values()
            # 404: nothing to remove; 409: removed already, or written again.
            if "error" not in result or result["status"] in (404, 409):
                continue
            if _full(result):
                raise StorageFull(_BACKEND)
            _log.warning("OpenSearch does not take a document into %s: %s", self._index.name, result["error"])
            raise BackendUnavailable(self.name)


def text_field() -> Mapping[str, Any]:
    """A field of words that are ours, separated by spaces, with what it takes to search in it."""
    return {"type": "text", "analyzer": "words", "index_options": "freqs"}


def text_settings() -> Mapping[str, Any]:
    """The settings that `text_field` needs."""
    tokenizer = {"type": "whitespace", "max_token_length": _LONGEST_WORD}
    return {
        "analysis": {
            "tokenizer": {"words": tokenizer},
            "analyzer": {"words": {"type": "custom", "tokenizer": "words"}},
        }
    }


def _states(documents: Sequence[Mapping[str, Any]]) -> dict[str, IndexState]:
    states = [document["_source"]["state"] for document in documents if document.get("found")]
    return {
        state["uid"]: IndexState(state["uid"], state["collection"], int(state["revision"]), int(state["dimension"]))
        for state in states
    }


def _full(info: Any) -> bool:
    """Whether the server's refusal is that of a disk that is (nearly) full."""
    said = str(info)
    return "flood-stage watermark" in said or "No space left on device" in said
