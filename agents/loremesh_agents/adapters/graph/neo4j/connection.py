"""The connection to a Neo4j server, and what the driver's errors mean."""

import asyncio
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, Self, cast
from urllib.parse import unquote, urlsplit

import neo4j
from neo4j import exceptions

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, ConfigurationError

_log = logging.getLogger(__name__)

BACKEND = "neo4j"
SCHEMES = ("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")
"""`neo4j` asks the server for the members of its cluster; `+s` is TLS, `+ssc` TLS with whatever certificate."""

_POOL = 64
_CONNECT_SECONDS = 5.0
_IDLE_SECONDS_BEFORE_A_CHECK = 30.0
_DEFAULT_PORT = 7687
_GIVEN = "given"
"""The map of all parameters of a statement (`statements`)."""

_TIMED_OUT = frozenset(
    {
        "Neo.ClientError.Transaction.TransactionTimedOut",
        "Neo.ClientError.Transaction.TransactionTimedOutClientConfiguration",
        "Neo.TransientError.Transaction.LockAcquisitionTimeout",
        "Neo.ClientError.Transaction.LockAcquisitionTimeout",
    }
)
_NOT_SERVED = frozenset({"Neo.ClientError.Database.DatabaseNotFound", "Neo.ClientError.Security.Forbidden"})
_NO_INDEX = "schema index"


class _OpensDrivers(Protocol):
    """Of the driver's module; the driver leaves its options untyped."""

    def driver(self, uri: str, **options: object) -> neo4j.AsyncDriver: ...


class _OpensSessions(Protocol):
    """Of the driver; the same."""

    def session(self, **options: object) -> neo4j.AsyncSession: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        uri: What the driver dials.
        user: Who we are; empty where the server asks nobody.
        database: Name of the database; empty for the server's default.
    """

    uri: str
    user: str
    database: str

    @classmethod
    def parse(cls, setting: str, url: str) -> Self:
        """Reads `bolt://user@host:port/database`.

        Raises:
            ConfigurationError: It is not of that form; a password in it is never repeated.
        """
        rule = "it must be of the form bolt://user@host:7687/database"
        try:
            parts = urlsplit(url)
            port = parts.port or _DEFAULT_PORT
        except ValueError as error:
            raise ConfigurationError(f"the setting {setting} is no URL ({error}): {rule}") from None
        if parts.password is not None:
            raise ConfigurationError(
                f"the setting {setting} has a password in its URL, where logs would show it: put it into stores.graph_password"
            )
        database = parts.path.strip("/")
        if (
            parts.scheme not in SCHEMES
            or not parts.hostname
            or "/" in database
            or parts.query
            or parts.fragment
            or any(character.isspace() for character in url)
        ):
            raise ConfigurationError(f"the setting {setting} is {url!r}: {rule}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{parts.scheme}://{host}:{port}", unquote(parts.username or ""), unquote(database))


class Connection:
    """A bounded pool of connections.

    A read sees what every request of this connection that returned before has written or seen, whichever member of a cluster answers it:
    each request carries the bookmarks of those before.

    Args:
        address: Where the server is.
        password: Of the address's user.
    """

    def __init__(self, address: Address, password: str) -> None:
        self._address = address
        self._password = password
        self._open: neo4j.AsyncDriver | None = None
        self._bookmarks = neo4j.AsyncGraphDatabase.bookmark_manager()
        self._closed = False
        self.requests = 0

    def _driver(self) -> neo4j.AsyncDriver:
        # Opened by the first request: a driver belongs to the event loop that it is made in.
        if self._closed:
            raise BackendUnavailable(BACKEND)
        if self._open is None:
            self._open = cast("_OpensDrivers", neo4j.AsyncGraphDatabase).driver(
                self._address.uri,
                auth=(self._address.user, self._password) if self._address.user else None,
                max_connection_pool_size=_POOL,
                connection_timeout=_CONNECT_SECONDS,
                liveness_check_timeout=_IDLE_SECONDS_BEFORE_A_CHECK,
                notifications_min_severity=neo4j.NotificationMinimumSeverity.OFF,
                telemetry_disabled=True,
                user_agent="loremesh",
            )
        return self._open

    async def read(
        self, text: str, parameters: Mapping[str, Any], *, starting: bool = False, deadline: Deadline
    ) -> list[list[Any]]:
        """Rows of a query that changes nothing; any member of a cluster may answer it. Errors as `translated_errors`."""
        return await self._run(neo4j.READ_ACCESS, text, parameters, starting=starting, deadline=deadline)

    async def write(
        self, text: str, parameters: Mapping[str, Any], *, starting: bool = False, deadline: Deadline
    ) -> list[list[Any]]:
        """Rows of a query in a transaction of its own. Errors as `translated_errors`, and the driver's `ConstraintError`."""
        return await self._run(neo4j.WRITE_ACCESS, text, parameters, starting=starting, deadline=deadline)

    async def _run(
        self, access: str, text: str, parameters: Mapping[str, Any], *, starting: bool, deadline: Deadline
    ) -> list[list[Any]]:
        seconds = deadline.remaining()
        if not seconds:
            raise BudgetExhausted("graph store", "query")
        driver = self._driver()
        self.requests += 1
        # The driver wants literals so that nobody puts values into a query: ours are built from the schema's constants alone.
        query = neo4j.Query(cast("Any", text), timeout=seconds)
        with translated_errors(starting=starting):
            # When the time is up, or the caller leaves, the driver closes the connection and the server ends the transaction at once;
            # the server's own timeout is for those that it does not hear of.
            async with (
                asyncio.timeout(seconds),
                cast("_OpensSessions", driver).session(
                    database=self._address.database or None,
                    default_access_mode=access,
                    bookmark_manager=self._bookmarks,
                    fetch_size=-1,
                ) as session,
            ):
                result = await session.run(query, {_GIVEN: dict(parameters)})
                return await result.values()

    async def close(self) -> None:
        """Closes all connections."""
        self._closed = True
        if self._open is not None:
            opened, self._open = self._open, None
            await opened.close()


@contextmanager
def translated_errors(*, starting: bool) -> Generator[None]:
    """Turns the driver's errors into domain errors; what is a defect of ours (a syntax error, say) stays what it is.

    Args:
        starting: Whether somebody is there to mend the settings.

    Raises:
        BudgetExhausted: The time was up.
        ConfigurationError: At the start: the server refuses us, or has no such database.
        BackendUnavailable: Anything else that is the server's or the network's. A full disk is among it: the server says only that it must be
            started again.
    """
    try:
        yield
    except TimeoutError as error:
        raise BudgetExhausted("graph store", "query") from error
    except exceptions.Neo4jError as error:
        _raise_from_server(error, starting=starting)
    except exceptions.ConfigurationError as error:
        raise _refused(f"neo4j cannot be used as stores.graph says: {error}", starting=starting) from error
    except (exceptions.DriverError, OSError) as error:
        # The commonest is a server that is away: said once by who asks, not at each request.
        _log.info("neo4j: %s", error)
        raise BackendUnavailable(BACKEND) from error


def _raise_from_server(error: exceptions.Neo4jError, *, starting: bool) -> NoReturn:
    code, message = error.code or "", error.message or ""
    if code in _TIMED_OUT:
        raise BudgetExhausted("graph store", "query") from error
    if isinstance(error, exceptions.AuthError):
        raise _refused(
            f"neo4j refuses the user in stores.graph or the password in stores.graph_password: {message}",
            starting=starting,
        ) from error
    if code in _NOT_SERVED:
        raise _refused(f"neo4j does not serve what stores.graph names: {message}", starting=starting) from error
    if _NO_INDEX in message:
        _log.error("neo4j: %s; `loremesh graph migrate` makes it", message)
        raise BackendUnavailable(BACKEND) from error
    if isinstance(error, exceptions.ClientError) and not error.is_retryable():
        raise error
    _log.warning("neo4j: %s: %s", code, message)
    raise BackendUnavailable(BACKEND) from error


def _refused(sentence: str, *, starting: bool) -> Exception:
    if starting:
        return ConfigurationError(sentence)
    _log.error("%s", sentence)
    return BackendUnavailable(BACKEND)
