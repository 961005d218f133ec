"""Plain text: headings underlined as in reStructuredText, and entries of definitions."""

import re

from loremesh_agents.adapters.parsing.content import Content, decode
from loremesh_agents.domain.document import Section

_UNDERLINE = re.compile(r"^([=\-*~^\"'#+.])\1{2,}\s*$")
_DEFINITION = re.compile(
    r"^(?:(?:class|exception|async|classmethod|staticmethod|property|function|method)\s+)*[A-Za-z_][\w.]*\s*\([^()]*(?:\([^()]*\)[^()]*)*\)(?:\s*->\s*\S.*)?$"
)
_DOTTED = re.compile(r"^[A-Za-z_]\w*(?:\.\w+)+$")
_LONGEST_HEADING = 200


def parse(data: bytes, charset: str) -> Content:
    """The content of plain text; its first heading is its title when it stands at the beginning.

    Raises:
        UnreadableError: The bytes are no text.
    """
    lines = decode(data, charset).expandtabs(8).split("\n")
    levels: list[str] = []
    path: list[str] = []
    sections: list[Section] = []
    body: list[str] = []
    title = ""

    def close(headings: list[str]) -> None:
        text = "\n".join(body).strip("\n")
        if text.strip():
            sections.append(Section(text, tuple(headings)))
        body.clear()

    definition: str | None = None
    index = 0
    while index < len(lines):
        line = lines[index]
        mark = _heading_mark(lines, index)
        if mark is not None:
            close([*path, *([definition] if definition else [])])
            definition = None
            heading = line.strip()
            if mark not in levels:
                levels.append(mark)
            depth = levels.index(mark)
            del levels[depth + 1 :]
            if depth == 0 and not title and not sections:
                title = heading
            else:
                path = [*path[: max(depth - (1 if title else 0), 0)], heading]
            index += 2
            continue
        if _is_definition(lines, index):
            close([*path, *([definition] if definition else [])])
            definition = line.strip()
        elif definition is not None and line and not line[0].isspace():
            close([*path, definition])
            definition = None
        body.append(line.rstrip())
        index += 1
    close([*path, *([definition] if definition else [])])
    return Content(title, tuple(sections))


def _heading_mark(lines: list[str], index: int) -> str | None:
    line = lines[index]
    if not line.strip() or line[0].isspace() or len(line) > _LONGEST_HEADING or index + 1 >= len(lines):
        return None
    underline = _UNDERLINE.match(lines[index + 1])
    before = lines[index - 1].strip() if index else ""
    if (
        underline is None
        or before
        or _UNDERLINE.match(line)
        or len(lines[index + 1].rstrip()) < len(line.rstrip()) * 0.6
    ):
        return None
    return underline[1]


def _is_definition(lines: list[str], index: int) -> bool:
    line = lines[index].rstrip()
    if len(line) > _LONGEST_HEADING or not (_DEFINITION.match(line) or _DOTTED.match(line)):
        return False
    for following in lines[index + 1 : index + 4]:
        if following.strip() and not _DEFINITION.match(following.rstrip()) and not _DOTTED.match(following.rstrip()):
            return following[0].isspace()
    return False
