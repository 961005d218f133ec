"""Words: search terms for BM25, and the keys by which entities are known."""

import re
import unicodedata
from dataclasses import dataclass

# Accents may be characters of their own (decomposed text): they belong to the letter before them.
_WORD = re.compile(r"\w[\w\u0300-\u036f]*(?:[.'’-]\w[\w\u0300-\u036f]*)*", re.UNICODE)
_PART = re.compile(r"[^\W_]+", re.UNICODE)
# Scripts without spaces between words: each character is a term, as are no two of them together.
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")

FUNCTION_WORDS = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "also",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "before",
        "being",
        "between",
        "both",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "each",
        "either",
        "every",
        "few",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "here",
        "hers",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "me",
        "more",
        "most",
        "my",
        "neither",
        "no",
        "nor",
        "not",
        "of",
        "off",
        "on",
        "once",
        "one",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "own",
        "same",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "until",
        "up",
        "us",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)
"""Words that no text can be spotted by: a title of these alone is not matched."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text.

    Attributes:
        text: As it is written.
        start: Index of its first character.
        end: Index after its last one.
    """

    text: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """The words of a text in order; inner dots, apostrophes and hyphens belong to a word (`object.__exit__`, `Jean-Paul`)."""
    found: list[Word] = []
    for match in _WORD.finditer(text):
        if _IDEOGRAPH.search(match[0]):
            found += [Word(character, match.start() + i, match.start() + i + 1) for i, character in enumerate(match[0])]
        else:
            found.append(Word(match[0], match.start(), match.end()))
    return found


def fold(text: str) -> str:
    """Lower case without accents: NFKD without combining marks, case-folded."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character)).casefold()


def key_of_word(word: str) -> str:
    """What a single word is matched by: folded, possessive and outer punctuation off, inner dots and underscores kept."""
    folded = fold(word).replace("’", "'")
    folded = folded.removesuffix("'s")
    return folded.strip(".'-").replace("'", "").replace("-", " ")


def entity_key(name: str) -> str:
    """The key of an entity: the keys of its words joined by one space; empty where there is no word.

    Two names with the same key are the same entity. Underscores stay, so that `__exit__` is not the word `exit`.
    """
    return " ".join(" ".join(key_of_word(word.text) for word in words(name)).split())


def search_terms(text: str) -> list[str]:
    """The terms of a text for BM25, in order, with repeats.

    Words are folded. A compound (`Jean-Paul`, `object.__exit__`) gives its parts; an identifier with underscores also gives itself.
    """
    terms: list[str] = []
    for word in words(text):
        folded = fold(word.text)
        if folded.isalnum():
            terms.append(folded)
            continue
        for piece in re.split(r"[.'’-]", folded):
            if piece == "s":
                continue
            if "_" in piece and piece.strip("_"):
                terms.append(piece)
            terms += _PART.findall(piece)
    return terms
