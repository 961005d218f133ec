"""What goes wrong on the way to a Gremlin server and in it, as domain errors."""

import ssl
from collections.abc import Generator
from contextlib import contextmanager

import aiohttp

from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    ConfigurationError,
    StorageFull,
    WriteConflict,
)

_TIMED_OUT = 598
_UNAUTHORIZED = frozenset({401, 403, 407})
_FULL = ("No space left on device", "DiskLimitException", "Disk usage is not within", "disk usage exceeds")
# The schema is explicit: a server that lacks a part of it refuses the request that needs it.
_NO_SCHEMA = (
    "Undefined type used in query",
    "Property Key with given name does not exist",
    "Vertex Label with given name does not exist",
    "Edge Label with given name does not exist",
)
_THERE = ("Vertex with id already exists",)
_BACKEND = (
    *("BackendException", "backend exception", "ServiceUnavailable", "AllNodesFailed", "ReadOnlyViolation"),
    "exception during persistence",  # JanusGraph's storage did not take it in time, or gave no lock
)
_CONFLICT = (
    "Conflict: element modified",
    "ConcurrentModificationException",
    "TransactionException",
    "LockingException",
    "LockConflictException",
)


class AlreadyThere(Exception):
    """A vertex was to be made with the id of another."""


def expired() -> BudgetExhausted:
    """The deadline has passed, here or in the server."""
    return BudgetExhausted("graph store", "query")


def refused(name: str, code: int, message: str) -> Exception:
    """What the status of an answer means."""
    if code == _TIMED_OUT:
        return expired()
    if code in _UNAUTHORIZED:
        return ConfigurationError(
            f"the {name} server refuses the user in stores.graph or the password in stores.graph_password: {message}"
        )
    if any(sign in message for sign in _THERE):
        return AlreadyThere(message)
    if any(sign in message for sign in _FULL):
        return StorageFull(name)
    if any(sign in message for sign in _NO_SCHEMA):
        return ConfigurationError(
            f"the {name} graph lacks a part of the schema ({message}): run `loremesh graph migrate`"
        )
    if any(sign in message for sign in _CONFLICT):
        return WriteConflict(name)
    if any(sign in message for sign in _BACKEND) or code == 596:
        return BackendUnavailable(name)
    return RuntimeError(f"the {name} server refused a request with status {code}: {message[:1000]}")


def answer_too_large(name: str, limit: int) -> ConfigurationError:
    """The server sent a message beyond what we take."""
    return ConfigurationError(
        f"the {name} server sent a message of more than {limit} bytes: its setting resultIterationBatchSize must be smaller"
    )


@contextmanager
def connecting(name: str, url: str) -> Generator[None]:
    """Translates what goes wrong while a websocket is opened.

    Raises:
        ConfigurationError: No attempt will succeed: the address, the certificate or the credentials are wrong.
        BackendUnavailable: A later one may.
    """
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
        raise ConfigurationError(f"the TLS of {name} at {url} does not fit the settings: {error}") from error
    except aiohttp.WSServerHandshakeError as error:
        if error.status in _UNAUTHORIZED:
            raise ConfigurationError(
                f"{name} at {url} refuses our credentials: status {error.status} {error.message}"
            ) from error
        if error.status in {400, 404}:
            raise ConfigurationError(
                f"what answers at {url} is no {name} server: status {error.status} {error.message}"
            ) from error
        raise BackendUnavailable(name) from error
    except aiohttp.InvalidURL as error:
        raise ConfigurationError(f"the address {url} of {name} is none") from error
    except (aiohttp.ClientError, OSError) as error:
        raise BackendUnavailable(name) from error
