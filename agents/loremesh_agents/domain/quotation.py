"""Texts of documents as a prompt quotes them: what they say is evidence, and nothing in them acts.

Documents come from anybody. A quotation stands between two lines that its text cannot hold, title included; characters that a person does not see are left
out, for a model reads them; what models or our parsers would take for control text is taken apart. What a document says in plain words stays: that it is no
instruction, the prompt can only say.
"""

import hashlib
import re
from collections.abc import Iterable

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Controls, soft hyphens, zero-width characters, marks and overrides of the direction, invisible operators, fillers, interlinear marks, tags and the variation
# selectors in which bytes can be hidden.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d"
    "\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Joiners make words of some scripts and pictures of several; beside ASCII they only hide something.
_STRAY_JOINER = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])")
_CONTROL_TOKEN = re.compile(
    r"""
      <(?=\|[^|<>\n]{1,64}\|>)                       # <|im_start|>, <|eot_id|>, <|endoftext|>
    | <(?=/?(?:s|bos|eos|pad|unk|mask|human|bot)>)   # of SentencePiece and its relatives
    | <(?=(?:start|end)_of_turn>)
    | <(?=/?(?:tool_call|tool_response|tools|function_(?:calls?|results?)|functions?|invoke|think|thinking)\b[^<>\n]{0,128}>)
    | <(?=\uff5c[^<>\n]{1,64}\uff5c>)                # the same with full-width bars
    | <(?=<(?:functions?|observation|/?SYS)>>)
    | \[(?=/?(?:INST|SYS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|SYSTEM_PROMPT|THINK)\])
    | !(?=\[)                                        # an image, which a page that shows the answer would fetch
    """,
    re.VERBOSE | re.IGNORECASE,
)
_TOOL_MARKER = re.compile(r"(start|end)(?=toolcall)", re.IGNORECASE)
_ROLE = re.compile(
    r"^(?=[ \t]*(?:[#*_>\[(-]+[ \t]*)?(?:system|user|assistant|human|ai|developer|tool|instructions?|response)(?:[ \t]+(?:prompt|message))?[ \t]*[\])*_]*[ \t]*:)",
    re.IGNORECASE | re.MULTILINE,
)
_FENCE_DIGITS = 8


def visible(text: str) -> str:
    """A text without the characters that a person does not see; all ends of lines are line feeds."""
    return _STRAY_JOINER.sub("", _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))


def harmless(text: str) -> str:
    """A text without invisible characters, in which what begins like control text is followed by a space: `< |im_start|>`."""
    return _TOOL_MARKER.sub(r"\1 ", _CONTROL_TOKEN.sub(lambda match: f"{match[0]} ", visible(text)))


def one_line(text: str) -> str:
    """A title: harmless and on one line."""
    return " ".join(harmless(text).split())


def body(title: str, text: str) -> str:
    """What stands within the fence of a source. Lines that look like the beginning of somebody's turn are marked as quoted."""
    return _ROLE.sub("> ", f"{title}\n{text}")


def fence(texts: Iterable[str]) -> str:
    """A line that none of the texts can hold: made of a hash of all of them, and lengthened while one of them has it."""
    joined = "\n".join(texts)
    digest = hashlib.sha256(joined.encode()).hexdigest()
    length = _FENCE_DIGITS
    while digest[:length] in joined and length < len(digest):
        length += 1
    return f"~~~ {digest[:length]}"


def quoted(sources: Iterable[tuple[int, str]]) -> str:
    """Numbered bodies, each within the fence of all of them."""
    numbered = list(sources)
    line = fence(text for _, text in numbered)
    return "\n\n".join(f"[{number}]\n{line}\n{text}\n{line}" for number, text in numbered)
