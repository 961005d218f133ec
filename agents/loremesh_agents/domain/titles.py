"""The names that a passage bears: these make the gazetteer."""

import re
from collections.abc import Sequence

from loremesh_agents.domain.definitions import defined
from loremesh_agents.domain.document import Title
from loremesh_agents.domain.lexicon import FUNCTION_WORDS, entity_key

EXACT = 1.0
ALIAS = 0.6
"""A title without its trailing "(...)", another name, a part of a dotted name."""
LATER = 0.3
"""The document's title on a passage that is not its first."""
DEFINED = 0.6
"""What the first sentence defines, where the document has a title as well, or in another form."""

_QUALIFIER = re.compile(r"\s*[(（][^()（）]*[)）]\s*$")
_NUMBERING = re.compile(r"^\s*(?:\d+(?:\.\d+)*\.?|[IVXLC]+\.|[A-Z]\.)\s+(?=\S)")
_QUOTED = re.compile(r"[\"“”‘`«»]|(?<!\w)'|'(?!\w)")
_SIGNATURE = re.compile(
    r"^(?:(?:class|exception|async|def|function|method|property|data|attribute)\s+)*([A-Za-z_][\w.]*)(\(.*)?$",
    re.DOTALL,
)
_ARTICLE = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)


def titles(
    title: str,
    *,
    aliases: Sequence[str] = (),
    headings: Sequence[str] = (),
    first: bool,
    opens_section: bool,
    text: str = "",
) -> tuple[Title, ...]:
    """The names of a passage, each key once with its greatest weight.

    Args:
        title: The document's title.
        aliases: The document's other names.
        headings: Headings above the passage, the outermost first.
        first: Whether it is the first passage of its document.
        opens_section: Whether it is the first passage below its innermost heading.
        text: Its text, which may begin with the definition of what it is about.
    """
    found: dict[str, Title] = {}

    def add(name: str, weight: float) -> None:
        key = entity_key(name)
        if not key or FUNCTION_WORDS.issuperset(key.split()):
            return
        if key not in found or found[key].weight < weight:
            found[key] = Title(name, key, weight)

    for name, weight in _names(title):
        add(name, weight if first else min(weight, LATER))
    if first:
        for alias in aliases:
            for name, weight in _names(alias):
                add(name, min(weight, ALIAS))
    if headings and opens_section:
        for name, weight in _names(_NUMBERING.sub("", headings[-1])):
            add(name, weight)
    if first:
        for place, subject in enumerate(defined(text)):
            for name, weight in _names(subject):
                add(name, weight if not (title or place) else min(weight, DEFINED))
    return tuple(found.values())


def _names(text: str) -> list[tuple[str, float]]:
    plain = _QUOTED.sub("", text).strip()
    if not plain:
        return []
    signature = _SIGNATURE.match(plain)
    if signature is not None and (signature[2] is not None or "." in signature[1] or "_" in signature[1]):
        name = signature[1].strip(".")
        last = name.rpartition(".")[2]
        # The last letter of "A.P.E.X." is nobody's name.
        return [(name, EXACT), *([(last, ALIAS)] if last != name and len(last) > 1 else [])]
    names = [(plain, EXACT)]
    bare = _QUALIFIER.sub("", plain)
    if bare and bare != plain:
        names.append((bare, ALIAS))
    unnumbered = _NUMBERING.sub("", plain)
    if unnumbered != plain:
        names.append((unnumbered, ALIAS))
    article = _ARTICLE.sub("", bare or plain)
    if article and article not in (plain, bare):
        names.append((article, ALIAS))
    return names
