"""Where a Gremlin server is, and how it is talked to."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from loremesh_agents.domain.errors import ConfigurationError

_SOCKET_PATH = "/gremlin"


def _no_headers() -> Mapping[str, str]:
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
    headers: Callable[[], Mapping[str, str]] = field(default=_no_headers, repr=False)
    connections: int = 4
    in_flight: int = 32
    message_bytes: int = 64 << 20
    request_bytes: int = 512 << 10


class Address(NamedTuple):
    """The parts of a server's URL in the settings."""

    scheme: str
    user: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.scheme.endswith("wss")

    @property
    def websocket(self) -> str:
        """URL of the websocket."""
        return f"{'wss' if self.encrypted else 'ws'}://{self.authority}{_SOCKET_PATH}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        """Trusts the system's authorities, or those of the file that the variable SSL_CERT_FILE names."""
        return ssl.create_default_context() if self.encrypted else None

    @classmethod
    def parse(cls, setting: str, url: str, form: str) -> "Address":
        """Reads a URL.

        Args:
            setting: Its name, for the error.
            url: Its value.
            form: What it should look like, for the error.

        Raises:
            ConfigurationError: It lacks a host or a port, or has what belongs elsewhere; a password in it is not repeated.
        """
        rule = f"it must be of the form {form}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"the setting {setting} is no URL ({error}): {rule}") from None
        if parts.password is not None:
            raise ConfigurationError(
                f"the setting {setting} has a password in its URL, where logs would show it: put it into {setting}_password"
            )
        path = parts.path.strip("/")
        spaced = any(character.isspace() for character in url)
        if not parts.hostname or not port or "/" in path or parts.query or parts.fragment or spaced:
            raise ConfigurationError(f"the setting {setting} is {url!r}: {rule}")
        return cls(parts.scheme, unquote(parts.username or ""), parts.hostname, port, path)


def janusgraph_endpoint(setting: str, url: str, password: str) -> Endpoint:
    """The JanusGraph server of `gremlin+ws://user@host:port/g`.

    Args:
        setting: Name of the setting, for the error.
        url: Its value; the path names the traversal source, `g` where there is none.
        password: Of the URL's user.

    Raises:
        ConfigurationError: The URL is not of that form.
    """
    address = Address.parse(setting, url, "gremlin+ws://user@host:8182/g")
    return Endpoint(
        "janusgraph",
        address.websocket,
        source=address.path or "g",
        username=address.user,
        password=password,
        tls=address.tls,
    )
