"""The names in a first sentence that says what a text is about: "Ada Lovelace (1815 - 1852), born Byron, was an English mathematician"."""

import re
from collections.abc import Iterator

from loremesh_agents.domain.lexicon import FUNCTION_WORDS, entity_key

_LOOKED_AT = 600
"""Characters of a text in which its first sentence is looked for."""
_LONGEST = 8
"""Words of a name."""
_PARENTHESES = re.compile(r"\s*[(\[（][^()\[\]（）]*[)\]）]")
_SUBJECT = re.compile(
    r"\s*((?:[^.!?;\n]|(?<=\b[A-Z])\.|(?<=\b[A-Z][a-z])\.|(?<=\b[A-Z][a-z]{2})\.|\.(?=\S)){1,250}?)"
    r",?(?:[ \t]+|[ \t]*\n[ \t]*)(?:is|are|was|were|refers to|may refer to|means|served as)\b"
)
_OTHER_NAME = re.compile(r",?\s+(?:(?:\w+\s+)?known(?:\s+\w+)?\s+as|called|born(?:\s+as)?|or)\s+")
_ARTICLE = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)
_TITLE_OF_RESPECT = re.compile(
    r"^(?:(?:Captain|Colonel|Count|Dame|Doña|Don|Dr|General|Lady|Lord|Major|Prince|Princess|Professor|Queen|King|Rev|Saint|Sir)\.?\s+)+"
)
_SPOKEN_OF = re.compile(r"[Tt]he\s+[a-zß-öø-ÿ]+")
"""As in "The film was released": what was named before, and so nothing's name."""
_CAPITALISED = re.compile(r"\w*[^\W\d_a-zß-öø-ÿ]\w*")


def defined(text: str) -> Iterator[str]:
    """Names of what the text's first sentence defines, as written and then shortened; none where it defines nothing."""
    opening = text[:_LOOKED_AT]
    # Twice: parentheses stand in parentheses.
    subject = _SUBJECT.match(_PARENTHESES.sub("", _PARENTHESES.sub("", opening)))
    if subject is None:
        return
    for written in _OTHER_NAME.split(subject[1]):
        name = written.strip(" ,")
        short = name.partition(",")[0]
        for form in (name, short, _TITLE_OF_RESPECT.sub("", short), _without_middle_names(short)):
            if form and _is_name(form):
                yield form


def _is_name(text: str) -> bool:
    """Whether a subject is more than the beginning of a sentence, as in "This was" or "In 1900 there were"."""
    words = _ARTICLE.sub("", text).split()
    if not 0 < len(words) <= _LONGEST or not entity_key(text) or _SPOKEN_OF.fullmatch(text):
        return False
    if entity_key(words[0]) not in FUNCTION_WORDS:
        return True
    # "My Dear Angel", "And God Created Woman": a title of a work, in capitals.
    return (
        len(words) > 1
        and all(
            _CAPITALISED.fullmatch(word.strip("\"',:!-")) or entity_key(word) in FUNCTION_WORDS for word in words[1:]
        )
        and _CAPITALISED.fullmatch(words[-1].strip("\"',:!-")) is not None
    )


def _without_middle_names(name: str) -> str:
    """The first and the last of several names; empty where there are no others between."""
    words = _TITLE_OF_RESPECT.sub("", name).split()
    if not 3 <= len(words) <= 5 or not all(word[:1].isupper() for word in words):
        return ""
    return f"{words[0]} {words[-1]}"
