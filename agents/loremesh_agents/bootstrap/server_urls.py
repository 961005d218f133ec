"""URLs of servers that may have several nodes: `scheme://host:port,host:port/name?option=number`."""

import re
from collections.abc import Collection as Group
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from loremesh_agents.domain.errors import ConfigurationError

_NODE = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_OPTION = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """What such a URL says.

    Attributes:
        scheme: Its scheme.
        nodes: Hosts with their ports.
        name: Of what is kept there.
        options: What follows the question mark.
    """

    scheme: str
    nodes: tuple[tuple[str, int], ...]
    name: str
    options: Mapping[str, str]

    def count(self, option: str) -> int | None:
        """An option that is a whole number; None where it is not given."""
        value = self.options.get(option)
        return int(value) if value is not None else None


def parse_server_url(
    setting: str, url: str, *, default_port: int, counts: Group[str] = (), words: Group[str] = ()
) -> ServerUrl:
    """Reads a URL of servers.

    Args:
        setting: Where it comes from, for messages.
        url: The URL.
        default_port: Of nodes without one.
        counts: Options that are whole numbers.
        words: Options that are names.

    Raises:
        ConfigurationError: It is not what it should be; the message names the setting, the URL (without a password) and the rule.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ConfigurationError(
            f"the setting {setting} holds a user: name it in {setting}_user, and its password in {setting}_password"
        )

    def refuse(rule: str) -> ConfigurationError:
        example = f"{parts.scheme}://search-1:{default_port},search-2:{default_port}/loremesh"
        return ConfigurationError(f"the setting {setting} is {url!r}: {rule}, as in {example}")

    nodes: list[tuple[str, int]] = []
    for node in parts.netloc.split(","):
        found = _NODE.fullmatch(node)
        port = int((found and found["port"]) or default_port)
        if found is None or not 0 < port < 65536:
            raise refuse("it needs a host and a port, or several with commas between them")
        nodes.append((found["host"].strip("[]"), port))
    name = parts.path.strip("/")
    if not _NAME.fullmatch(name):
        raise refuse(
            "its path is a name of small letters, digits and underscores, at most 40, that begins with a letter"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for option, value in options.items():
        if option in counts and value.isascii() and value.isdigit() and len(value) < 5:
            continue
        if option in words and _OPTION.fullmatch(value):
            continue
        known = ", ".join([*(f"{count}=1" for count in counts), *(f"{word}=name" for word in words)])
        raise refuse(f"it may have the options {known} and no {option}={value}")
    return ServerUrl(parts.scheme, tuple(nodes), name, options)
