"""Words: search terms for BM25, and the keys by which entities are known."""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

# Accents may be characters of their own (decomposed text): they belong to the letter before them.
_WORD = re.compile(r"\w[\w\u0300-\u036f]*(?:[.'’-]\w[\w\u0300-\u036f]*)*", re.UNICODE)
_SPLIT = re.compile(f"({_WORD.pattern})", re.UNICODE)
_COMPOUND = re.compile(r"[.'’-]")
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
    return " ".join([key for word in split(name)[0] for key in word_forms(word).keys])


@dataclass(frozen=True, slots=True)
class WordForms:
    """A word as matching and search see it.

    Attributes:
        keys: Words of its key; a compound with a hyphen has several.
        terms: Its search terms.
        capitalised: Whether it is written like a name.
        identifier: Whether it is written like a name in a program.
    """

    keys: tuple[str, ...]
    terms: tuple[str, ...]
    capitalised: bool
    identifier: bool


@lru_cache(maxsize=1 << 15)  # most words of a text are among the common ones
def word_forms(word: str) -> WordForms:
    """The forms of a word as it is written."""
    return WordForms(tuple(key_of_word(word).split()), _terms_of(word), is_capitalised(word), is_identifier(word))


def split(text: str) -> tuple[list[str], list[str]]:
    """The words of a text as `words` gives them, and what stands between each and the next."""
    pieces = _SPLIT.split(text)
    found, between = pieces[1::2], pieces[2::2]
    if text.isascii() or not _IDEOGRAPH.search(text):
        return found, between
    apart: list[str] = []
    gaps: list[str] = []
    for word, gap in zip(found, between, strict=True):
        characters = list(word) if _IDEOGRAPH.search(word) else [word]
        apart += characters
        gaps += [*[""] * (len(characters) - 1), gap]
    return apart, gaps


def is_capitalised(word: str) -> bool:
    """Whether a word is written like a name: it begins with a capital, or with a digit and holds one."""
    return word[0].isupper() or (word[0].isdigit() and any(character.isupper() for character in word))


def is_identifier(word: str) -> bool:
    """Whether a word is written like a name in a program: with underscores, inner capitals or inner dots."""
    return (
        "_" in word
        or any(character.isupper() for character in word[1:])
        or ("." in word.strip(".") and not word[0].isdigit())
    )


def search_terms(text: str) -> list[str]:
    """The terms of a text for BM25, in order, with repeats.

    Words are folded. A compound (`Jean-Paul`, `object.__exit__`) gives its parts; an identifier with underscores also gives itself.
    """
    return [term for word in split(text)[0] for term in word_forms(word).terms]


def _terms_of(word: str) -> tuple[str, ...]:
    folded = fold(word)
    if folded.isalnum():
        return (folded,)
    terms: list[str] = []
    for piece in _COMPOUND.split(folded):
        if piece == "s":
            continue
        if "_" in piece and piece.strip("_"):
            terms.append(piece)
        terms += _PART.findall(piece)
    return tuple(terms)
