"""Cassandra's driver, with our deadlines and errors, on our event loop."""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false
# The driver has no types: what it gives is Any here, and typed where it leaves.

import asyncio
import logging
import ssl
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    DriverException,
    InvalidRequest,
    OperationTimedOut,
    ReadFailure,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import (
    ConstantSpeculativeExecutionPolicy,
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    TokenAwarePolicy,
)
from cassandra.query import SimpleStatement

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, StorageFull

_log = logging.getLogger(__name__)
_BACKEND = "cassandra"
_THREADS = 2
_AT_ONCE = 64
_BUILDING = "INDEX_NOT_AVAILABLE"
_PAUSE = 0.05
_MOST_PREPARED = 512
_CONNECT_SECONDS = 10
_LONGEST_PAUSE = 10.0
_PATIENCE = 0.25
"""Seconds after which a read is asked of another node as well."""
_OTHERS = 2
_PROTOCOL = 5
"""The first that knows vectors; naming it saves a round of questions."""

ONE = int(ConsistencyLevel.LOCAL_ONE)
QUORUM = int(ConsistencyLevel.LOCAL_QUORUM)
ALL = int(ConsistencyLevel.ALL)


class ReplicaMissing(Exception):
    """Not every replica has taken what was to be written to all."""


@dataclass(frozen=True, slots=True)
class CassandraServers:
    """Where Cassandra is.

    Attributes:
        hosts: Some of its nodes; the others are found through them.
        port: For CQL.
        keyspace: Where our tables are; it must be there.
        user: Who logs in; empty for nobody.
        password: With which password.
        tls: Whether to connect by TLS.
        ca: PEM file of the authorities that its certificates come from; None for those of the machine.
        datacenter: Whose nodes are asked; empty for that of the first one.
    """

    hosts: tuple[str, ...]
    port: int
    keyspace: str
    user: str = ""
    password: str = ""
    tls: bool = False
    ca: Path | None = None
    datacenter: str = ""


class CassandraConnection:
    """A session that is opened when it is first needed, and again while that fails; afterwards the driver reconnects by itself.

    Args:
        servers: Where to.
    """

    def __init__(self, servers: CassandraServers) -> None:
        self._servers = servers
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="cassandra")
        self._session: Any = None
        self._connecting: asyncio.Task[Any] | None = None
        self._prepared: OrderedDict[str, Any] = OrderedDict()

    async def define(self, statement: str, *, deadline: Deadline) -> None:
        """Changes the schema; returns when all nodes know."""
        async with self._translated("changing the schema", deadline):
            session = await self._connected()
            await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: session.execute(statement, timeout=deadline.remaining())
            )

    async def ask(
        self, statement: str, values: Sequence[Any] = (), *, consistency: int = QUORUM, stage: str, deadline: Deadline
    ) -> list[Any]:
        """The rows of a statement's first page."""
        (rows,) = await self.ask_each(statement, [values], consistency=consistency, stage=stage, deadline=deadline)
        return rows

    async def ask_each(
        self,
        statement: str,
        rows: Sequence[Sequence[Any]],
        *,
        consistency: int = QUORUM,
        stage: str,
        deadline: Deadline,
    ) -> list[list[Any]]:
        """What a statement gives with each of many lists of values; some of them may have been carried out when it fails.

        Raises:
            BackendUnavailable: It cannot be reached, or refuses us or our statement.
            StorageFull: It takes nothing more.
            BudgetExhausted: The deadline passed.
            ReplicaMissing: Some replica is away, or fails, where the consistency level is `ALL`; so may all of them.
        """
        found: list[list[Any]] = []
        async with self._translated(stage, deadline, tell_missing=consistency == ALL):
            session = await self._connected()
            prepared = await self._preparation(session, statement)
            start = 0
            while start < len(rows):
                some = rows[start : start + _AT_ONCE]
                answers: list[asyncio.Future[list[Any]]] = [asyncio.get_running_loop().create_future() for _ in some]
                bindings = list(zip(some, answers, strict=True))
                await asyncio.get_running_loop().run_in_executor(
                    self._threads,
                    partial(_send, session, prepared, bindings, consistency=consistency, deadline=deadline),
                )
                try:
                    found += await asyncio.gather(*answers)
                except ReadFailure as error:
                    # An index that was just made, or a node that just started, says so for a moment.
                    if _BUILDING not in str(error):
                        raise
                    await asyncio.sleep(_PAUSE)
                    continue
                start += _AT_ONCE
        return found

    async def scan(self, statement: str, *, stage: str, deadline: Deadline) -> list[Any]:
        """All rows of a statement without values, page by page."""
        async with self._translated(stage, deadline):
            session = await self._connected()
            asked = SimpleStatement(statement, consistency_level=QUORUM, fetch_size=5000)
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: list(session.execute(asked, timeout=deadline.remaining()))
            )

    async def close(self) -> None:
        """Closes the connections."""
        if self._connecting is not None:
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._session is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._session.cluster.shutdown)
            self._session = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _connected(self) -> Any:
        if self._session is None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
            # All that wait share one attempt, which goes on when one of them gives up.
            await asyncio.shield(self._connecting)
        return self._session

    async def _connect(self) -> None:
        try:
            self._session = await asyncio.get_running_loop().run_in_executor(self._threads, self._open)
        finally:
            self._connecting = None

    def _open(self) -> Any:
        servers = self._servers
        near = DCAwareRoundRobinPolicy(servers.datacenter)
        profile = ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(near),
            consistency_level=QUORUM,
            speculative_execution_policy=ConstantSpeculativeExecutionPolicy(_PATIENCE, _OTHERS),
        )
        cluster = Cluster(
            list(servers.hosts),
            port=servers.port,
            auth_provider=PlainTextAuthProvider(servers.user, servers.password) if servers.user else None,
            ssl_context=ssl.create_default_context(cafile=servers.ca) if servers.tls else None,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            reconnection_policy=ExponentialReconnectionPolicy(0.5, _LONGEST_PAUSE),
            protocol_version=_PROTOCOL,
            connect_timeout=_CONNECT_SECONDS,
        )
        try:
            return cluster.connect(servers.keyspace)
        except BaseException:
            cluster.shutdown()
            raise

    async def _preparation(self, session: Any, statement: str) -> Any:
        prepared: Any = self._prepared.get(statement)
        if prepared is None:
            prepared = await asyncio.get_running_loop().run_in_executor(self._threads, session.prepare, statement)
            # A node goes on asking another for some seconds after that was killed: a third may know better.
            prepared.is_idempotent = statement.startswith("SELECT")
            self._prepared[statement] = prepared
            while len(self._prepared) > _MOST_PREPARED:
                self._prepared.popitem(last=False)
        return prepared

    @asynccontextmanager
    async def _translated(self, stage: str, deadline: Deadline, *, tell_missing: bool = False) -> AsyncGenerator[None]:
        where = f"{', '.join(self._servers.hosts)}:{self._servers.port}"
        try:
            async with asyncio.timeout(deadline.remaining()):
                yield
        except (TimeoutError, OperationTimedOut):
            raise BudgetExhausted(_BACKEND, stage) from None
        except NoHostAvailable as error:
            if tell_missing and self._session is not None:
                raise ReplicaMissing from error
            causes = error.errors.values() if isinstance(error.errors, dict) else ()
            refused = any(isinstance(cause, AuthenticationFailed) for cause in causes)
            why = "refuses the user or the password" if refused else "cannot be reached"
            _log.warning("Cassandra at %s %s: %s", where, why, error)
            raise BackendUnavailable(_BACKEND) from error
        except InvalidRequest as error:
            if "disk usage exceeds" in str(error):
                raise StorageFull(_BACKEND) from error
            _log.error("Cassandra at %s refuses a statement at %s: %s", where, stage, error)
            raise BackendUnavailable(_BACKEND) from error
        except (DriverException, OSError) as error:
            if tell_missing:
                raise ReplicaMissing from error
            _log.warning("Cassandra at %s fails at %s: %s", where, stage, error)
            raise BackendUnavailable(_BACKEND) from error


def _send(
    session: Any,
    prepared: Any,
    bindings: Sequence[tuple[Sequence[Any], asyncio.Future[list[Any]]]],
    *,
    consistency: int,
    deadline: Deadline,
) -> None:
    """Sends requests; what comes back is handed to the futures' own loop. Not on that loop, for binding vectors takes a while."""

    def attach(response: Any, answer: asyncio.Future[list[Any]]) -> None:
        loop = answer.get_loop()
        response.add_callbacks(
            lambda found: loop.call_soon_threadsafe(_resolve, answer, list(found or ())),
            lambda error: loop.call_soon_threadsafe(_fail, answer, error),
        )

    for values, answer in bindings:
        bound = prepared.bind(values)
        bound.consistency_level = consistency
        attach(session.execute_async(bound, timeout=deadline.remaining()), answer)


def _resolve(answer: asyncio.Future[list[Any]], rows: list[Any]) -> None:
    if not answer.done():
        answer.set_result(rows)


def _fail(answer: asyncio.Future[list[Any]], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
