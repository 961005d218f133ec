"""HTML: the main content of a page."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The driver's types are partly unknown; what it returns is checked where it enters.

import re
from typing import Any

from lxml import etree
from lxml import html as lxml_html

from loremesh_agents.adapters.parsing.content import Content, UnreadableError, decode
from loremesh_agents.domain.document import Link, Section

_CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?([\w-]+)", re.IGNORECASE)
_DROPPED = frozenset(
    [
        "script",
        "style",
        "noscript",
        "template",
        "svg",
        "nav",
        "footer",
        "aside",
        "form",
        "iframe",
        "object",
        "button",
        "select",
        "head",
    ]
)
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "blockquote",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "figcaption",
        "figure",
        "header",
        "hr",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tr",
        "ul",
    ]
)
_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}


def parse(data: bytes, charset: str) -> Content:
    """The content of a page: what is in its main element or body, without navigation, scripts and forms.

    Raises:
        UnreadableError: The bytes are no text, or hold no page.
    """
    declared = _CHARSET.search(data[:4096])
    text = decode(data, charset or (declared[1].decode("ascii") if declared else ""))
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    parser = lxml_html.HTMLParser(remove_comments=True, remove_pis=True, no_network=True, huge_tree=False)
    try:
        root = lxml_html.document_fromstring(text, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as error:
        raise UnreadableError("it holds no HTML element") from error
    title = " ".join((root.findtext(".//title") or "").split())
    mains: Any = root.xpath("//main | //*[@role='main']") or root.xpath("//article")
    walk = _Walk()
    walk.visit(mains[0] if len(mains) == 1 else (root.find("body") if root.find("body") is not None else root))
    walk.close()
    metadata = {"language": root.get("lang", "")} if root.get("lang") else {}
    return Content(walk.title or title, tuple(walk.sections), metadata)


class _Walk:
    def __init__(self) -> None:
        self.title = ""
        self.sections: list[Section] = []
        self._path: list[tuple[int, str]] = []
        self._text: list[str] = []
        self._links: list[Link] = []

    def visit(self, element: Any) -> None:
        tag = element.tag if isinstance(element.tag, str) else ""
        if tag in _DROPPED or element.get("hidden") is not None or element.get("aria-hidden") == "true":
            return
        if tag in _HEADINGS:
            self._open(_HEADINGS[tag], " ".join(element.text_content().split()))
            return
        if tag == "pre":
            self._text.append("\n\n" + element.text_content().strip("\n") + "\n\n")
            return
        if tag == "br":
            self._text.append("\n")
        if tag in _BLOCKS:
            self._text.append("\n\n")
        if tag == "li":
            self._text.append("- ")
        if tag == "a" and element.get("href"):
            self._links.append(Link(element.get("href").strip(), " ".join(element.text_content().split())))
        if element.text:
            self._text.append(_collapse(element.text))
        for child in element:
            self.visit(child)
            if tag == "tr":
                self._text.append(" | ")
            if child.tail:
                self._text.append(_collapse(child.tail))
        if tag in _BLOCKS:
            self._text.append("\n\n")

    def _open(self, level: int, text: str) -> None:
        self.close()
        if not text:
            return
        if level == 1 and not self.title:
            self.title = text
            return
        self._path = [*(entry for entry in self._path if entry[0] < level), (level, text)]

    def close(self) -> None:
        text = re.sub(r"[ \t]+\n", "\n", "".join(self._text))
        # One blank after a break is left of collapsed white space; more are the indentation of preformatted text.
        text = re.sub(r"\n (?=\S)", "\n", text)
        text = re.sub(r"\n{3,}", "\n\n", text).strip()
        text = re.sub(r"(?m)^(?:- )?\n+(?=- )", "", text)
        if text:
            links = tuple(link for link in self._links if link.target and not link.target.startswith("javascript:"))
            self.sections.append(Section(text, tuple(name for _, name in self._path), links))
        self._text = []
        self._links = []


def _collapse(text: str) -> str:
    return re.sub(r"\s+", " ", text)
