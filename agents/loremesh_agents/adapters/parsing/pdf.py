"""PDF: the text layer, page by page. Runs in a process of its own, for a hostile file may take for ever."""

import io
import logging
import re

from loremesh_agents.adapters.parsing.content import Content, UnreadableError
from loremesh_agents.domain.document import Section

_MOST_PAGES = 2000


def parse(data: bytes) -> Content:
    """The content of a PDF; one section a page.

    Raises:
        UnreadableError: It is damaged, encrypted, or has no text layer.
    """
    import pypdf  # noqa: PLC0415  # only the worker process needs it

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("it is encrypted")
        title = str(reader.metadata.title or "") if reader.metadata else ""
        pages = [_clean(page.extract_text()) for page in reader.pages[:_MOST_PAGES]]
    except UnreadableError:
        raise
    except Exception as error:  # the library raises whatever a damaged file leads it to
        raise UnreadableError(f"it is damaged ({type(error).__name__})") from error
    sections = tuple(Section(text, (f"Page {number}",)) for number, text in enumerate(pages, start=1) if text.strip())
    if not sections:
        raise UnreadableError("it has no text layer")
    first = sections[0].text.split("\n", 1)[0].strip()
    return Content(" ".join(title.split()) or first[:200], sections)


def _clean(text: str) -> str:
    joined = re.sub(r"(\w)-\n(\w)", r"\1\2", text.replace("\x00", ""))
    return re.sub(r"[ \t]+\n", "\n", joined).strip()
