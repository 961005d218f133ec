"""Where a Gremlin server is, and how it is talked to."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from loremesh_agents.domain.errors import ConfigurationError


def _no_headers(url: str) -> Mapping[str, str]:
    del url
    return {}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server.

    Attributes:
        name: What errors call the engine.
        url: Of its websocket.
        source: Name of the traversal source.
        username: For servers that ask for it; empty for none.
        password: The same.
        tls: How its certificate is checked; None for plain connections.
        headers: What the request for a websocket carries, made anew for each.
        connections: Most websockets at once.
        in_flight: Most requests at once; more wait.
        message_bytes: Largest message that is taken from the server.
        request_bytes: Size that batches of writes stay below, but for one that a single item exceeds.
    """

    name: str
    url: str
    source: str = "g"
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    headers: Callable[[str], Mapping[str, str]] = field(default=_no_headers, repr=False)
    connections: int = 4
    in_flight: int = 32
    message_bytes: int = 64 << 20
    request_bytes: int = 512 << 10


def split(setting: str, url: str, example: str) -> SplitResult:
    """The parts of a URL of the settings.

    Raises:
        ConfigurationError: It lacks a host or a port, or has what belongs elsewhere.
    """
    parts = urlsplit(url)
    rule = ""
    try:
        if not parts.hostname or parts.port is None:
            rule = "it needs a host and a port"
    except ValueError as error:
        rule = str(error)
    if parts.username or parts.password:
        raise ConfigurationError(f"the setting {setting} has a password in it: it belongs into {setting}_password")
    if parts.query or parts.fragment:
        rule = "it takes neither ? nor #"
    if rule:
        raise ConfigurationError(f"the setting {setting} is {url!r}: {rule}, as in {example}")
    return parts
