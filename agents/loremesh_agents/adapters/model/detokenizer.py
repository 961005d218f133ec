"""Turns token ids into text while they come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loremesh_agents.domain.answer import TokenLogprobs

_INCOMPLETE = "�"
_LONGEST_CODE_POINT = 4
"""Bytes, and so tokens, of a code point in UTF-8 at the most."""
_MOST_PENDING = 32
_MOST_CONTEXT = 16
_REPLAYED = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens and the text that they end.

    Attributes:
        text: Whole code points.
        token_ids: Ids of the tokens; empty where the engine does not tell them.
        token_count: How many tokens they are.
        logprobs: One for each, where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    token_count: int = 1
    logprobs: tuple[TokenLogprobs, ...] = ()


class Detokenizer:
    """Decodes a growing sequence of tokens.

    The texts that it gives, joined, are at every time a beginning of the text that decoding all tokens at once gives, and all of it but a code point that
    is not whole yet. The one exception: decoders with byte fallback replace a whole run of byte tokens where one byte of it is no UTF-8; what was given of
    such a run stays as it is.

    What a token means depends on its neighbours (white space between words, bytes of one code point), so each is decoded together with those before it.

    Args:
        decode: Text of a sequence of ids.
        emitted: Ids that were given out before, where a text is gone on with.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], emitted: Sequence[int] = ()) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []
        self._emitted_pending = 0
        self._text_without_tokens = ""
        if emitted:
            before = max(0, len(emitted) - _REPLAYED)
            self._context = list(emitted[max(0, before - _MOST_CONTEXT) : before])
            self._context_text = decode(self._context)
            for token in emitted[before:]:
                self.add(token)
            self._emitted_pending = len(self._pending)
            self._text_without_tokens = ""

    def add(self, token: int) -> Piece | None:
        """The text that ends with this token; None while its last code point is not whole."""
        pending = self._pending
        pending.append(token)
        text = self._text(pending)
        if not text.endswith(_INCOMPLETE) or len(pending) > _MOST_PENDING:
            return self._commit(len(pending), text)
        if len(pending) < _LONGEST_CODE_POINT:
            return None
        # So many tokens are more than one code point: bytes that never become one are among them.
        settled = text[: -len(_INCOMPLETE)]
        for count in range(len(pending) - 1, 0, -1):
            head = self._text(pending[:count])
            if settled.startswith(head):
                return self._commit(count, head)
        return None

    def finish(self, *, complete: bool) -> Piece | None:
        """What is left.

        Args:
            complete: Whether the text ends here. If not, a code point that is not whole is left to whoever goes on.
        """
        if not self._pending:
            return None
        text = self._text(self._pending)
        if not complete:
            text = text.rstrip(_INCOMPLETE)
        return self._commit(len(self._pending), text)

    def _text(self, ids: Sequence[int]) -> str:
        whole = self._decode([*self._context, *ids])
        if whole.startswith(self._context_text):
            return whole[len(self._context_text) :]
        # A run of byte tokens that became invalid: decoded apart from what was given before.
        return self._decode(ids)

    def _commit(self, count: int, text: str) -> Piece | None:
        taken = self._pending[:count]
        del self._pending[:count]
        # Tokens without text stay beside those before: a decoder may treat the first word of a text in its own way.
        self._context = taken if text else [*self._context, *taken][-_MOST_CONTEXT:]
        self._context_text = self._decode(self._context)
        new = taken[self._emitted_pending :]
        self._emitted_pending = max(0, self._emitted_pending - count)
        text = self._text_without_tokens + text
        if not new:
            self._text_without_tokens = text
            return None
        self._text_without_tokens = ""
        return Piece(text, tuple(new), len(new))


class StopTexts:
    """Ends a text before the first of some texts, wherever the pieces' borders are.

    Of several, the one counts that is whole first. Nothing of it is given out, and nothing that could become one before it is clear that it does not.

    Args:
        stops: The texts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held: list[Piece] = []
        self._text = ""
        self.stopped = False

    def add(self, piece: Piece) -> list[Piece]:
        """The pieces that can be given out; after `stopped`, the last ones."""
        if not self._stops:
            return [piece]
        self._held.append(piece)
        self._text += piece.text
        found = [(place + len(stop), place) for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._cut(min(found)[1])
        return self._release(len(self._text) - self._possible_stop())

    def flush(self) -> list[Piece]:
        """What was held back; the text has ended."""
        held, self._held, self._text = self._held, [], ""
        return held

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop text."""
        text = self._text
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _release(self, limit: int) -> list[Piece]:
        end = count = 0
        for piece in self._held:
            if end + len(piece.text) > limit:
                break
            end += len(piece.text)
            count += 1
        ready = self._held[:count]
        del self._held[:count]
        self._text = self._text[end:]
        return ready

    def _cut(self, limit: int) -> list[Piece]:
        ready = self._release(limit)
        rest = self._text[: limit - sum(len(piece.text) for piece in ready)]
        if rest:
            ready.append(replace(self._held[0], text=rest))
        self._held, self._text = [], ""
        return ready
