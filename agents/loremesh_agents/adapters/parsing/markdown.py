"""Markdown (CommonMark with tables), with front matter."""

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

from loremesh_agents.adapters.parsing.content import Content, decode
from loremesh_agents.domain.document import Link, Section

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", re.DOTALL)
_PAIR = re.compile(r"^([A-Za-z_][\w-]*):\s*(.+?)\s*$", re.MULTILINE)
_LONGEST_VALUE = 1024


def parse(data: bytes, charset: str) -> Content:
    """The content of Markdown; the title comes from front matter, else from the first heading of the first level.

    Raises:
        UnreadableError: The bytes are no text.
    """
    text = decode(data, charset)
    metadata: dict[str, str] = {}
    front = _FRONT_MATTER.match(text)
    if front is not None:
        metadata = {name: value.strip("\"'")[:_LONGEST_VALUE] for name, value in _PAIR.findall(front[1])}
        text = text[front.end() :]
    title = metadata.pop("title", "")
    walk = _Walk(title)
    walk.run(MarkdownIt("commonmark", {"html": False}).enable("table").parse(text))
    return Content(walk.title, tuple(walk.sections), metadata)


class _Walk:
    def __init__(self, title: str) -> None:
        self.title = title
        self.sections: list[Section] = []
        self._path: list[tuple[int, str]] = []
        self._blocks: list[str] = []
        self._links: list[Link] = []

    def run(self, tokens: list[Token]) -> None:
        heading: int | None = None
        item = False
        cells: list[str] | None = None
        for token in tokens:
            match token.type:
                case "heading_open":
                    heading = int(token.tag[1])
                case "heading_close":
                    heading = None
                case "list_item_open":
                    item = True
                case "tr_open":
                    cells = []
                case "tr_close":
                    self._blocks.append(" | ".join(cells or []))
                    cells = None
                case "fence" | "code_block":
                    self._blocks.append(token.content.rstrip("\n"))
                case "inline":
                    text = self._inline(token)
                    if heading is not None:
                        self._open(heading, text)
                    elif cells is not None:
                        cells.append(text)
                    else:
                        self._blocks.append(f"- {text}" if item else text)
                        item = False
                case _:
                    pass
        self._close()

    def _inline(self, token: Token) -> str:
        parts: list[str] = []
        link: tuple[str, int] | None = None
        for child in token.children or []:
            match child.type:
                case "text" | "code_inline":
                    parts.append(child.content)
                case "softbreak" | "hardbreak":
                    parts.append(" ")
                case "image":
                    parts.append(child.content)
                case "link_open":
                    link = (str(child.attrGet("href") or ""), len(parts))
                case "link_close" if link is not None:
                    target, start = link
                    if target:
                        self._links.append(Link(target, "".join(parts[start:])))
                    link = None
                case _:
                    pass
        return "".join(parts).strip()

    def _open(self, level: int, text: str) -> None:
        self._close()
        if level == 1 and not self.title:
            self.title = text
            return
        if level == 1 and text == self.title:
            return
        self._path = [*(entry for entry in self._path if entry[0] < level), (level, text)]

    def _close(self) -> None:
        text = "\n\n".join(block for block in self._blocks if block)
        if text.strip():
            self.sections.append(Section(text, tuple(name for _, name in self._path), tuple(self._links)))
        self._blocks = []
        self._links = []
