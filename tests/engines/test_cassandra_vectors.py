"""What is Cassandra's alone, of vectors: servers that refuse, vanish and come back; tables that are missing or of another format."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from pydantic import SecretStr

from loremesh_agents.adapters.derived.cassandra import ALL, CassandraConnection, CassandraServers, ReplicaMissing
from loremesh_agents.adapters.derived.keeping import shelf
from loremesh_agents.adapters.graph.memory import MemoryGraphStore
from loremesh_agents.adapters.vector.cassandra import CassandraVectorIndex
from loremesh_agents.bootstrap.backends import open_vectors
from loremesh_agents.bootstrap.settings import StoreSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, StorageFull
from loremesh_agents.domain.revision import CollectionRevision
from tests.documents import soon
from tests.engines.clustered import Clustered, recall
from tests.engines.search_indexes import define, new_keyspace
from tests.engines.servers.cassandra import Cassandra
from tests.engines.servers.process import free_port


@pytest.fixture
async def graph() -> AsyncIterator[MemoryGraphStore]:
    store = MemoryGraphStore()
    yield store
    await store.close()


@pytest.fixture
async def where(cassandra: Cassandra) -> AsyncIterator[CassandraServers]:
    keyspace = await asyncio.to_thread(new_keyspace, cassandra)
    yield CassandraServers((cassandra.address,), cassandra.port, keyspace)
    await asyncio.to_thread(define, cassandra, f"DROP KEYSPACE {keyspace}")


@pytest.fixture
async def index(graph: MemoryGraphStore, where: CassandraServers) -> AsyncIterator[CassandraVectorIndex]:
    opened = CassandraVectorIndex(graph, where)
    await opened.recover(deadline=soon())
    yield opened
    await opened.close()


async def count(index: CassandraVectorIndex, revision: CollectionRevision, deadline: Deadline | None = None) -> int:
    """How many passages a search for any of them gives."""
    question = np.eye(8, dtype=np.float32)[0]
    return len(await index.search(question, model="m", revisions=(revision,), limit=100, deadline=deadline or soon()))


async def tables(cassandra: Cassandra, where: CassandraServers) -> list[str]:
    """The tables of vectors."""
    asked = f"SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{where.keyspace}'"
    rows = await asyncio.to_thread(define, cassandra, asked)
    return [row.table_name for row in rows if row.table_name.startswith("vectors_")]


async def test_a_reader_waits_until_the_writer_is_there(
    graph: MemoryGraphStore, index: CassandraVectorIndex, where: CassandraServers
) -> None:
    reader = CassandraVectorIndex(graph, where)
    revision = await Clustered(5, dimension=8).put(graph)
    reading = asyncio.create_task(count(reader, revision))
    with pytest.raises(BudgetExhausted):
        await count(reader, revision, Deadline.after(0.5))
    assert not reading.done()
    assert await index.maintain("c", deadline=soon()) == revision
    assert await reading == 5
    await reader.close()


async def test_a_page_that_was_applied_and_not_noted_is_applied_again(
    graph: MemoryGraphStore, index: CassandraVectorIndex, where: CassandraServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Clustered(5, dimension=8).put(graph)
    await index.maintain("c", deadline=soon())

    async def killed(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    revision, _ = await graph.delete_documents("c", ["0", "1"], deadline=soon())
    monkeypatch.setattr(index._vectors, "note", killed)
    with pytest.raises(asyncio.CancelledError):
        await index.maintain("c", deadline=soon())
    following = CassandraVectorIndex(graph, where)
    await following.recover(deadline=soon())
    assert await count(following, revision) == 3
    await following.close()


async def test_a_state_never_goes_back(graph: MemoryGraphStore, index: CassandraVectorIndex) -> None:
    revision = await Clustered(5, dimension=8).put(graph)
    await index.maintain("c", deadline=soon())
    name = shelf(revision.collection_uid, "m")
    early = (await index._vectors.states([name], deadline=soon()))[name]
    later, _ = await graph.delete_documents("c", ["0"], deadline=soon())
    await index.maintain("c", deadline=soon())
    await index._vectors.note(early, deadline=soon())
    assert (await index._vectors.states([name], deadline=soon()))[name].revision == later.revision


async def test_what_a_missing_replica_has_not_taken_is_written_to_all_when_it_is_back(
    graph: MemoryGraphStore, where: CassandraServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True
    to_all: list[int] = []
    ask_each = CassandraConnection.ask_each

    async def ask(self: CassandraConnection, statement: str, rows: Sequence[Sequence[Any]], **options: Any) -> Any:
        if options.get("consistency") == ALL:
            if away:
                raise ReplicaMissing
            to_all.extend(row[0] for row in rows if statement.startswith("INSERT"))
        return await ask_each(self, statement, rows, **options)

    monkeypatch.setattr(CassandraConnection, "ask_each", ask)
    writer = CassandraVectorIndex(graph, where)
    for size in (5, 8):
        # Also those of a gap that is there already are found at once.
        revision = await Clustered(size, dimension=8).put(graph)
        assert await writer.maintain("c", deadline=soon()) == revision
        assert await count(writer, revision) == size
    await writer.close()
    following = CassandraVectorIndex(graph, where)
    away = False
    await following.recover(deadline=soon())
    mended = soon()
    while await following._vectors.gap(shelf(revision.collection_uid, "m"), deadline=mended) is not None:
        await asyncio.sleep(0.2)
    page = await graph.vector_changes("c", after_revision=0, limit=100, deadline=soon())
    assert set(page.added) <= set(to_all)
    to_all.clear()
    # From now on to all at once.
    revision = await Clustered(9, dimension=8).put(graph)
    await following.maintain("c", deadline=soon())
    assert await count(following, revision) == 9
    assert to_all
    await following.close()


async def test_what_is_gone_leaves_no_table(
    cassandra: Cassandra, graph: MemoryGraphStore, index: CassandraVectorIndex, where: CassandraServers
) -> None:
    await Clustered(5, dimension=8).put(graph)
    await index.maintain("c", deadline=soon())
    assert len(await tables(cassandra, where)) == 1
    await graph.delete_collection("c", deadline=soon())
    await index.recover(deadline=soon())
    assert await tables(cassandra, where) == []


async def test_rebuilding_takes_away_what_does_not_belong(
    cassandra: Cassandra, graph: MemoryGraphStore, index: CassandraVectorIndex, where: CassandraServers
) -> None:
    revision = await Clustered(5, dimension=8).put(graph)
    await index.maintain("c", deadline=soon())
    (table,) = await tables(cassandra, where)
    stray = f"INSERT INTO {where.keyspace}.{table} (ref, stamp, vector) VALUES (999999, 1, {[1.0] + [0.0] * 7})"
    await asyncio.to_thread(define, cassandra, stray)
    assert await count(index, revision) == 6
    assert await index.rebuild("c", deadline=soon()) == revision
    assert await count(index, revision) == 5


async def test_a_missing_table_is_said_and_made_anew_on_request(
    cassandra: Cassandra,
    graph: MemoryGraphStore,
    index: CassandraVectorIndex,
    where: CassandraServers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    revision = await Clustered(5, dimension=8).put(graph)
    await index.maintain("c", deadline=soon())
    (table,) = await tables(cassandra, where)
    await asyncio.to_thread(define, cassandra, f"DROP TABLE {where.keyspace}.{table}")
    with pytest.raises(BackendUnavailable):
        await count(index, revision)
    assert table in caplog.text
    await index.rebuild("c", deadline=soon())
    assert await count(index, revision) == 5


async def test_another_format_is_refused_by_name_and_made_anew_on_request(
    cassandra: Cassandra,
    graph: MemoryGraphStore,
    index: CassandraVectorIndex,
    where: CassandraServers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    revision = await Clustered(5, dimension=8).put(graph)
    await index.maintain("c", deadline=soon())
    changed = f"UPDATE {where.keyspace}.vector_index SET format = 99 WHERE name = 'vectors' IF EXISTS"
    await asyncio.to_thread(define, cassandra, changed)
    following = CassandraVectorIndex(graph, where)
    for refused in (following.maintain("c", deadline=soon()), count(following, revision)):
        with pytest.raises(BackendUnavailable):
            await refused
    assert "format 99" in caplog.text
    assert "--rebuild" in caplog.text
    assert await following.rebuild("c", deadline=soon()) == revision
    assert await count(following, revision) == 5
    await following.close()


async def test_servers_that_are_not_there_are_said_at_once(
    graph: MemoryGraphStore, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    index = CassandraVectorIndex(graph, CassandraServers(("127.0.0.1",), port, "loremesh"))
    revision = await Clustered(5, dimension=8).put(graph)
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            await count(index, revision)
    assert f"127.0.0.1:{port} cannot be reached" in caplog.text
    await index.close()


async def test_a_missing_keyspace_is_said(
    cassandra: Cassandra, graph: MemoryGraphStore, caplog: pytest.LogCaptureFixture
) -> None:
    index = CassandraVectorIndex(graph, CassandraServers((cassandra.address,), cassandra.port, "nowhere"))
    await Clustered(5, dimension=8).put(graph)
    with pytest.raises(BackendUnavailable):
        await index.maintain("c", deadline=soon())
    assert "nowhere" in caplog.text
    await index.close()


async def test_a_question_of_another_dimension_is_refused(graph: MemoryGraphStore, index: CassandraVectorIndex) -> None:
    revision = await Clustered(5, dimension=8).put(graph)
    await index.maintain("c", deadline=soon())
    with pytest.raises(BackendUnavailable):
        await index.search(np.ones(9, dtype=np.float32), model="m", revisions=(revision,), limit=5, deadline=soon())


async def test_nearly_all_of_the_exact_nearest_are_proposed(
    graph: MemoryGraphStore, index: CassandraVectorIndex
) -> None:
    clustered = Clustered(3000, dimension=64)
    revision = await clustered.put(graph)
    await index.maintain("c", deadline=Deadline.after(120))
    assert await recall(index, graph, clustered, revision, limit=100) >= 0.99


async def test_by_tls_and_with_a_password_only_who_has_both_is_served_and_a_server_that_comes_back_is_used_again(
    tmp_path: Path, graph: MemoryGraphStore, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "strangers.pem"))
    node = Cassandra(tmp_path / "node", authentication=True, certificate=authority.issue_cert("127.0.0.1"))

    def opened(scheme: str, password: str, ca: str) -> CassandraVectorIndex:
        url = f"{scheme}://{node.address}:{node.port}/docs?datacenter=datacenter1"
        settings = StoreSettings(
            vectors=url, vectors_user="cassandra", vectors_password=SecretStr(password), ca=tmp_path / ca
        )
        found = open_vectors(settings, graph)
        assert isinstance(found, CassandraVectorIndex)
        return found

    try:
        replication = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}"
        statement = f"CREATE KEYSPACE docs WITH replication = {replication}"
        await asyncio.to_thread(
            partial(define, node, statement, user="cassandra", password="cassandra", authority=authority)
        )
        for scheme, password, ca, said in (
            ("cassandra+tls", "sesame", "ca.pem", "refuses the user or the password"),
            ("cassandra+tls", "cassandra", "strangers.pem", "CERTIFICATE_VERIFY_FAILED"),
            ("cassandra", "cassandra", "ca.pem", "cannot be reached"),
        ):
            wrong = opened(scheme, password, ca)
            with pytest.raises((BackendUnavailable, BudgetExhausted)):
                await wrong.recover(deadline=Deadline.after(20))
            assert said in caplog.text
            caplog.clear()
            await wrong.close()
        index = opened("cassandra+tls", "cassandra", "ca.pem")
        revision = await Clustered(5, dimension=8).put(graph)
        await index.maintain("c", deadline=soon())
        assert await count(index, revision) == 5
        node.kill()
        with pytest.raises((BackendUnavailable, BudgetExhausted)):
            await count(index, revision, Deadline.after(2))
        node.restart()
        assert await until_found(index, revision) == 5
        await index.close()
        assert "sesame" not in caplog.text
    finally:
        node.kill()


async def test_a_full_disk_ends_writing_and_not_reading(tmp_path: Path, graph: MemoryGraphStore) -> None:
    node = Cassandra(tmp_path, authentication=True)
    try:
        replication = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}"
        await asyncio.to_thread(
            partial(
                define,
                node,
                f"CREATE KEYSPACE docs WITH replication = {replication}",
                # Whom Cassandra calls super it lets write on.
                "CREATE ROLE loremesh WITH PASSWORD = 'sesame' AND LOGIN = true",
                "GRANT ALL PERMISSIONS ON KEYSPACE docs TO loremesh",
                user="cassandra",
                password="cassandra",
            )
        )
        where = CassandraServers((node.address,), node.port, "docs", "loremesh", "sesame")
        index = CassandraVectorIndex(graph, where)
        revision = await Clustered(5, dimension=8).put(graph)
        await index.maintain("c", deadline=soon())
        node.stop()
        node.restart(full=True)
        assert await until_found(index, revision) == 5
        await until_full(index, graph)
        there = await until_found(index, revision)
        node.stop()
        node.restart()
        assert await until_found(index, revision) == there
        reached = await index.maintain("c", deadline=soon())
        assert await count(index, reached) == there + 1
        await index.close()
    finally:
        node.kill()


async def until_full(index: CassandraVectorIndex, graph: MemoryGraphStore) -> None:
    """Writes until that is refused: a node looks at its disk now and then."""
    until = Deadline.after(60)
    number = 5
    while not until.expired:
        number += 1
        await Clustered(number, dimension=8).put(graph)
        try:
            await index.maintain("c", deadline=soon())
        except StorageFull:
            return
        await asyncio.sleep(0.5)
    pytest.fail("nothing was refused")


async def until_found(index: CassandraVectorIndex, revision: CollectionRevision) -> int:
    """How many passages are found as soon as the driver has connected again, which it says nowhere."""
    until = Deadline.after(60)
    while not until.expired:
        try:
            return await count(index, revision, until)
        except BackendUnavailable:
            await asyncio.sleep(0.2)
    return 0
