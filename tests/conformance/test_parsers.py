"""What the parser does with files of every kind."""

from collections.abc import AsyncIterator

import pytest

from loremesh_agents.adapters.parsing.parser import FileParser
from loremesh_agents.domain.document import Document, Link
from loremesh_agents.domain.errors import DocumentUnreadable, UnsupportedMediaType
from loremesh_agents.ports.parsing import Unparsed, Upload
from tests.documents import soon


@pytest.fixture
async def parser() -> AsyncIterator[FileParser]:
    opened = FileParser()
    yield opened
    await opened.close()


async def parse(parser: FileParser, media_type: str, data: bytes, **fields: str) -> Document | Unparsed:
    (found,) = await parser.parse(Upload("d", media_type, data, **fields), deadline=soon())
    return found


async def test_markdown_keeps_titles_headings_links_and_code(parser: FileParser) -> None:
    text = b"""---
title: Front
author: Somebody
---
# Heading one

Intro with a [link](other.md#part).

## Part *one*

- first
- second

```python
x = 1
```

| a | b |
|---|---|
| 1 | 2 |
"""
    found = await parse(parser, "text/markdown", text, uri="https://example.org/docs/page.md")
    assert isinstance(found, Document)
    assert found.title == "Front"
    assert found.metadata == {"author": "Somebody"}
    assert [section.headings for section in found.sections] == [("Heading one",), ("Heading one", "Part one")]
    assert found.sections[0].links == (Link("https://example.org/docs/other.md#part", "link"),)
    assert "x = 1" in found.sections[1].text
    assert "1 | 2" in found.sections[1].text


async def test_html_keeps_the_content_and_drops_the_rest(parser: FileParser) -> None:
    page = (
        "<!doctype html><html lang='en'><head><title>Page</title><script>evil()</script></head><body><nav>Menu</nav>"
        "<main><h1>Title</h1><p>Café <a href='/x'>here</a>.</p><h2>Sub</h2><ul><li>One</li></ul>"
        "<pre>a\n  b</pre></main><footer>Foot</footer></body></html>"
    )
    found = await parse(parser, "text/html; charset=utf-8", page.encode(), uri="https://example.org/p")
    assert isinstance(found, Document)
    assert found.title == "Title"
    assert [section.headings for section in found.sections] == [(), ("Sub",)]
    assert found.sections[0].text == "Café here."
    assert found.sections[0].links == (Link("https://example.org/x", "here"),)
    assert "- One" in found.sections[1].text
    assert "a\n  b" in found.sections[1].text
    whole = " ".join(section.text for section in found.sections)
    assert "evil" not in whole
    assert "Menu" not in whole


async def test_plain_text_knows_underlines_and_definitions(parser: FileParser) -> None:
    text = b"""The "with" statement
********************

Intro.

Details
=======

object.__exit__(self, exc_type)

   Exit the context.

After.
"""
    found = await parse(parser, "text/plain", text)
    assert isinstance(found, Document)
    assert found.title == 'The "with" statement'
    assert [section.headings for section in found.sections] == [
        (),
        ("Details", "object.__exit__(self, exc_type)"),
        ("Details",),
    ]


async def test_titles_fall_back_to_the_address(parser: FileParser) -> None:
    found = await parse(parser, "text/plain", b"Text.", uri="file:///a/some%20notes.txt")
    assert isinstance(found, Document)
    assert found.title == "some notes.txt"


async def test_a_pdf_with_text_is_read(parser: FileParser) -> None:
    found = await parse(parser, "application/pdf", simple_pdf("Hello from a page"))
    assert isinstance(found, Document)
    assert "Hello from a page" in found.sections[0].text
    assert found.sections[0].headings == ("Page 1",)


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        ("text/plain", b"\xff\xfe\xff"),
        ("text/plain", b"caf\xe9"),
        ("text/plain", b"a\x00b"),
        ("text/html", b"   "),
        ("text/markdown", b""),
        ("application/pdf", b"%PDF-1.7 garbage"),
        ("application/pdf", b""),
    ],
)
async def test_damaged_files_are_named_with_the_cause(parser: FileParser, media_type: str, data: bytes) -> None:
    found = await parse(parser, media_type, data)
    assert isinstance(found, Unparsed)
    assert isinstance(found.error, DocumentUnreadable)
    assert "'d'" in found.error.message


async def test_other_types_are_refused_with_those_that_there_are(parser: FileParser) -> None:
    found = await parse(parser, "application/zip", b"PK")
    assert isinstance(found, Unparsed)
    assert isinstance(found.error, UnsupportedMediaType)
    assert "text/markdown" in found.error.message


async def test_a_declared_charset_is_used(parser: FileParser) -> None:
    found = await parse(parser, "text/plain; charset=latin-1", b"caf\xe9")
    assert isinstance(found, Document)
    assert found.sections[0].text == "café"


def simple_pdf(text: str) -> bytes:
    stream = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body = b"%PDF-1.4\n"
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(body)
    body += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    body += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return body + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
