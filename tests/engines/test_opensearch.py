"""What is OpenSearch's alone: servers that refuse, vanish and come back; indexes that are missing, of another format, or full."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from pydantic import SecretStr

from loremesh_agents.adapters.derived.opensearch import OpenSearchServers
from loremesh_agents.adapters.graph.memory import MemoryGraphStore
from loremesh_agents.adapters.text.opensearch import OpenSearchTextIndex
from loremesh_agents.bootstrap.backends import open_text
from loremesh_agents.bootstrap.settings import StoreSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, StorageFull
from loremesh_agents.domain.revision import CollectionRevision
from tests.documents import document, soon, writes
from tests.engines.clustered import Clustered, recall
from tests.engines.door import PasswordDoor
from tests.engines.search_indexes import new_prefix, opensearch_vectors, servers
from tests.engines.servers.opensearch import OpenSearchNode
from tests.engines.servers.process import free_port
from tests.engines.servers.refusing import refusing_server


@pytest.fixture
async def graph() -> AsyncIterator[MemoryGraphStore]:
    store = MemoryGraphStore()
    yield store
    await store.close()


@pytest.fixture
def prefix(opensearch: OpenSearchNode) -> Iterator[str]:
    name = new_prefix()
    yield name
    opensearch.request("DELETE", f"/{name}-*")


@pytest.fixture
async def text(opensearch: OpenSearchNode, graph: MemoryGraphStore, prefix: str) -> AsyncIterator[OpenSearchTextIndex]:
    index = OpenSearchTextIndex(graph, servers(opensearch), prefix)
    await index.recover(deadline=soon())
    yield index
    await index.close()


async def put(graph: MemoryGraphStore, *names: str, collection: str = "c") -> CollectionRevision:
    documents = writes(*(document(name, name, f"The {name} stands near the Thames.") for name in names))
    revision, _ = await graph.write(collection, documents, embedding_model="", deadline=soon())
    return revision


async def count(index: OpenSearchTextIndex, revision: CollectionRevision, deadline: Deadline | None = None) -> int:
    """How many passages the word that all have is found in."""
    found = await index.search({"thames": 1}, revisions=(revision,), limit=100, deadline=deadline or soon())
    return len(found)


async def test_a_reader_waits_until_the_writer_is_there(
    opensearch: OpenSearchNode, graph: MemoryGraphStore, text: OpenSearchTextIndex, prefix: str
) -> None:
    reader = OpenSearchTextIndex(graph, servers(opensearch), prefix)
    revision = await put(graph, "tower", "bridge")
    reading = asyncio.create_task(count(reader, revision))
    with pytest.raises(BudgetExhausted):
        await count(reader, revision, Deadline.after(0.2))
    assert not reading.done()
    assert await text.maintain("c", deadline=soon()) == revision
    assert await reading == 2
    await reader.close()


async def test_every_acknowledged_revision_is_found_at_once(graph: MemoryGraphStore, text: OpenSearchTextIndex) -> None:
    for number in range(12):
        revision = await put(graph, f"d{number}")
        keeping = asyncio.create_task(text.maintain("c", deadline=soon()))
        assert await count(text, revision) == number + 1
        await keeping


async def test_a_page_that_was_applied_and_not_noted_is_applied_again(
    opensearch: OpenSearchNode,
    graph: MemoryGraphStore,
    text: OpenSearchTextIndex,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await put(graph, "tower", "bridge")
    await text.maintain("c", deadline=soon())

    async def killed(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    await put(graph, "gate")
    revision, _ = await graph.delete_documents("c", ["tower"], deadline=soon())
    monkeypatch.setattr(text._words, "note", killed)
    with pytest.raises(asyncio.CancelledError):
        await text.maintain("c", deadline=soon())
    following = OpenSearchTextIndex(graph, servers(opensearch), prefix)
    await following.recover(deadline=soon())
    assert await count(following, revision) == 2
    await following.close()


async def test_a_page_that_comes_late_brings_nothing_back(graph: MemoryGraphStore, text: OpenSearchTextIndex) -> None:
    await put(graph, "tower", "bridge")
    late = await graph.text_changes("c", after_revision=0, limit=10, deadline=soon())
    await text.maintain("c", deadline=soon())
    revision, _ = await graph.delete_documents("c", ["tower"], deadline=soon())
    await text.maintain("c", deadline=soon())
    state = (await text._words.states([revision.collection_uid], deadline=soon()))[revision.collection_uid]
    # Another knowledge agent that stood still between reading and writing.
    behind = await text._words.apply(state, late, stamp=1, deadline=soon())
    await text._words.note(behind, deadline=soon())
    assert await count(text, revision) == 1


async def test_what_a_process_left_undone_is_done_by_the_next(
    opensearch: OpenSearchNode, graph: MemoryGraphStore, text: OpenSearchTextIndex, prefix: str
) -> None:
    gone = await put(graph, "old", collection="gone")
    await text.maintain("gone", deadline=soon())
    await graph.delete_collection("gone", deadline=soon())
    first, second = await put(graph, "tower"), await put(graph, "bridge", collection="d")
    following = OpenSearchTextIndex(graph, servers(opensearch), prefix)
    await following.recover(deadline=soon())
    assert [await count(following, revision) for revision in (first, second)] == [1, 1]
    found = opensearch.request("POST", f"/{prefix}-text/_search", {"query": {"term": {"uid": gone.collection_uid}}})
    assert found["hits"]["hits"] == []
    assert set(await following._words.states(None, deadline=soon())) == {first.collection_uid, second.collection_uid}
    await following.close()


async def test_rebuilding_takes_away_what_does_not_belong_and_readers_go_on(
    opensearch: OpenSearchNode, graph: MemoryGraphStore, text: OpenSearchTextIndex, prefix: str
) -> None:
    revision = await put(graph, "tower", "bridge")
    await text.maintain("c", deadline=soon())
    stray = {"uid": revision.collection_uid, "stamp": 1, "words": ["thames"]}
    opensearch.request("PUT", f"/{prefix}-text/_doc/{revision.collection_uid}-999999?refresh=true", stray)
    assert await count(text, revision) == 3
    rebuilding = asyncio.create_task(text.rebuild("c", deadline=soon()))
    while not rebuilding.done():
        assert await count(text, revision) >= 2
    assert await rebuilding == revision
    assert await count(text, revision) == 2


async def test_a_missing_index_is_said_and_comes_back_whole_with_the_next_write(
    opensearch: OpenSearchNode,
    graph: MemoryGraphStore,
    text: OpenSearchTextIndex,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    revision, other = await put(graph, "tower"), await put(graph, "bridge", collection="d")
    await text.recover(deadline=soon())
    opensearch.request("DELETE", f"/{prefix}-text")
    with pytest.raises(BudgetExhausted):
        await count(text, revision, Deadline.after(0.3))
    assert caplog.text.count(f"there is no OpenSearch index {prefix}-text") == 1
    reading = asyncio.create_task(count(text, other))
    later = await put(graph, "gate")
    await text.maintain("c", deadline=soon())
    assert await count(text, later) == 2
    assert await reading == 1


async def test_an_index_of_another_format_is_refused_by_name_and_made_anew_on_request(
    opensearch: OpenSearchNode, graph: MemoryGraphStore, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    opensearch.request("PUT", f"/{prefix}-text", {"mappings": {"_meta": {"loremesh_format": 99}}})
    revision = await put(graph, "tower")
    index = OpenSearchTextIndex(graph, servers(opensearch), prefix)
    for refused in (index.maintain("c", deadline=soon()), count(index, revision), index.recover(deadline=soon())):
        with pytest.raises(BackendUnavailable):
            await refused
    assert f"{prefix}-text is of format 99" in caplog.text
    assert "--rebuild" in caplog.text
    assert await index.rebuild("c", deadline=soon()) == revision
    assert await count(index, revision) == 1
    await index.close()


async def test_a_server_that_is_not_there_is_said_at_once(
    graph: MemoryGraphStore, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    index = OpenSearchTextIndex(graph, OpenSearchServers((url,)), "docs")
    revision = await put(graph, "tower")
    for refused in (count(index, revision), index.maintain("c", deadline=soon())):
        with pytest.raises(BackendUnavailable):
            await refused
    assert url in caplog.text
    await index.close()


async def test_a_wrong_password_is_said(graph: MemoryGraphStore, caplog: pytest.LogCaptureFixture) -> None:
    revision = await put(graph, "tower")
    async with refusing_server("eva:right") as url:
        index = OpenSearchTextIndex(graph, OpenSearchServers((url,), "eva", "wrong"), "docs")
        with pytest.raises(BackendUnavailable):
            await count(index, revision)
        await index.close()
    assert "refuses the user or the password" in caplog.text
    assert "wrong" not in caplog.text


@pytest.mark.parametrize(
    ("user", "password", "trusted", "said"),
    [
        ("eva", "open sesame", True, ""),
        ("eva", "guessed", True, "refuses the user or the password"),
        ("", "", True, "refuses the user or the password"),
        ("eva", "open sesame", False, "CERTIFICATE_VERIFY_FAILED"),
    ],
)
async def test_settings_with_tls_and_a_password_reach_a_server_that_asks_for_them(
    opensearch: OpenSearchNode,
    graph: MemoryGraphStore,
    prefix: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    user: str,
    password: str,
    trusted: bool,
    said: str,
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    known = authority if trusted else trustme.CA()
    known.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with PasswordDoor(opensearch.port, "eva", "open sesame").serving(context) as door:
        url = f"opensearch+https://127.0.0.1:{door.port}/{prefix}"
        settings = StoreSettings(text=url, text_user=user, text_password=SecretStr(password), ca=tmp_path / "ca.pem")
        index = open_text(settings, graph)
        assert isinstance(index, OpenSearchTextIndex)
        revision = await put(graph, "tower", "bridge")
        if said:
            with pytest.raises(BackendUnavailable):
                await index.maintain("c", deadline=soon())
            assert said in caplog.text
            assert not door.requests
        else:
            await index.maintain("c", deadline=soon())
            assert await count(index, revision) == 2
            assert door.requests
        await index.close()
    assert not password or password not in caplog.text


async def test_a_server_that_stands_still_costs_no_more_than_the_deadline_and_comes_back(
    tmp_path: Path, graph: MemoryGraphStore
) -> None:
    node = OpenSearchNode(tmp_path)
    try:
        index = OpenSearchTextIndex(graph, servers(node), "docs")
        revision = await put(graph, "tower")
        await index.maintain("c", deadline=soon())
        node.signal(signal.SIGSTOP)
        async with asyncio.timeout(5):
            with pytest.raises(BudgetExhausted):
                await count(index, revision, Deadline.after(0.3))
        node.signal(signal.SIGCONT)
        assert await count(index, revision) == 1
        node.kill()
        with pytest.raises(BackendUnavailable):
            await count(index, revision)
        node = OpenSearchNode(tmp_path, port=node.port)
        assert await count(index, revision) == 1
        revision = await put(graph, "bridge")
        await index.maintain("c", deadline=soon())
        assert await count(index, revision) == 2
        await index.close()
    finally:
        node.kill()


async def test_a_full_disk_ends_writing_and_not_reading(
    opensearch: OpenSearchNode, graph: MemoryGraphStore, text: OpenSearchTextIndex, prefix: str
) -> None:
    revision = await put(graph, "tower")
    await text.maintain("c", deadline=soon())
    # What the server itself does to an index at the last watermark.
    opensearch.request("PUT", f"/{prefix}-text/_settings", {"index.blocks.read_only_allow_delete": True})
    later = await put(graph, "bridge")
    with pytest.raises(StorageFull):
        await text.maintain("c", deadline=soon())
    assert await count(text, revision) == 1
    opensearch.request("PUT", f"/{prefix}-text/_settings", {"index.blocks.read_only_allow_delete": None})
    await text.maintain("c", deadline=soon())
    assert await count(text, later) == 2


async def test_a_question_of_another_dimension_is_refused(
    opensearch: OpenSearchNode, graph: MemoryGraphStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with opensearch_vectors(opensearch, graph) as index:
        revision = await Clustered(50, dimension=8).put(graph)
        await index.maintain("c", deadline=soon())
        with pytest.raises(BackendUnavailable):
            await index.search(np.ones(9, dtype=np.float32), model="m", revisions=(revision,), limit=5, deadline=soon())
    assert "9" in caplog.text


async def test_nearly_all_of_the_exact_nearest_are_proposed(
    opensearch: OpenSearchNode, graph: MemoryGraphStore
) -> None:
    async with opensearch_vectors(opensearch, graph) as index:
        clustered = Clustered(4000, dimension=64)
        small = Clustered(40, dimension=64, seed=3)
        revisions = [await clustered.put(graph), await small.put(graph, collection="small")]
        for collection in ("c", "small"):
            await index.maintain(collection, deadline=Deadline.after(120))
        assert await recall(index, graph, clustered, revisions[0], limit=100) >= 0.99
        assert await recall(index, graph, small, revisions[1], limit=20) == 1.0
