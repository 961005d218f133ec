"""What a parser of one format gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from loremesh_agents.domain.document import Section


class UnreadableError(Exception):
    """The bytes are not what their media type says, or hold no text. The message is the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Content:
    """Title, sections and metadata of one file; the title is empty where it has none."""

    title: str
    sections: tuple[Section, ...]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    aliases: tuple[str, ...] = ()


def decode(data: bytes, charset: str = "") -> str:
    """Text of bytes: by the byte order mark, else the charset that was declared, else UTF-8.

    Raises:
        UnreadableError: They are none of these, or no text at all.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        charset = "utf-16"
    for name in dict.fromkeys(filter(None, ["utf-8-sig", charset])):
        try:
            text = data.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
        if "\x00" in text:
            raise UnreadableError("it holds bytes that no text has")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise UnreadableError(f"its bytes are not {charset or 'UTF-8'} text")
