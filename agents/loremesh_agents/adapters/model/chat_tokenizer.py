"""A model's tokenizer with its chat template, from the files that are published with it."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The driver's types are partly unknown; what it returns is checked where it enters.

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tokenizers import Tokenizer

from loremesh_agents.adapters.model.chat_template import ChatTemplate, TemplateRefused, message_fields
from loremesh_agents.domain.conversation import Message

_TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_SPECIAL = "special_tokens_map.json"
_GENERATION = "generation_config.json"
_READ = (_TOKENIZER, _CONFIG, _TEMPLATE, _SPECIAL, _GENERATION)

MOST_ARCHIVE_BYTES = 64 * 1024 * 1024
"""Largest archive of a tokenizer; the largest that are published have a third of it."""
_MOST_FILE_BYTES = 128 * 1024 * 1024
_MOST_MEMBERS = 64


class TokenizerRefused(Exception):
    """The files are no tokenizer with a chat template."""


def read_archive(data: bytes, *, most_file_bytes: int = _MOST_FILE_BYTES) -> dict[str, bytes]:
    """The files of a tokenizer from the ZIP archive that engines send.

    Args:
        data: The archive.
        most_file_bytes: Size of a file in it at the most.

    Raises:
        TokenizerRefused: It is no archive, leads out of itself, or is too large.
    """
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > _MOST_MEMBERS:
                raise TokenizerRefused(f"the archive has {len(members)} members, more than {_MOST_MEMBERS}")
            for member in members:
                path = PurePosixPath(member.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts:
                    raise TokenizerRefused(f"the archive's member {member.filename[:64]!r} leads out of it")
                if str(path) not in _READ:
                    continue
                with archive.open(member) as file:
                    # What the archive says about its sizes may be a lie: so many bytes and no more.
                    content = file.read(most_file_bytes + 1)
                if len(content) > most_file_bytes:
                    raise TokenizerRefused(f"{path} has more than {most_file_bytes} bytes")
                files[str(path)] = content
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise TokenizerRefused(f"the archive cannot be read: {error}") from None
    return files


def read_folder(path: Path) -> dict[str, bytes]:
    """The files of a tokenizer from a folder, or from that of its `tokenizer.json`.

    Raises:
        TokenizerRefused: A file cannot be read.
    """
    folder = path.parent if path.is_file() else path
    try:
        return {name: (folder / name).read_bytes() for name in _READ if (folder / name).is_file()}
    except OSError as error:
        raise TokenizerRefused(f"{folder} cannot be read: {error.strerror}") from None


class ChatTokenizer:
    """Prompts as token ids, and token ids as text.

    Args:
        files: By name: `tokenizer.json`, and what else of `tokenizer_config.json`, `chat_template.jinja`, `special_tokens_map.json` and `generation_config.json` there is.

    Attributes:
        hash: SHA-256 of `tokenizer.json` in hexadecimal digits.
        template_hash: SHA-256 of the template; empty without one.
        size: Its ids are less than this.
        end_ids: Ids of the tokens that end an answer.

    Raises:
        TokenizerRefused: The files are damaged.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        if _TOKENIZER not in files:
            raise TokenizerRefused(f"there is no {_TOKENIZER}")
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(files[_TOKENIZER])
        except Exception as error:  # noqa: BLE001 - the driver raises nothing narrower
            raise TokenizerRefused(f"{_TOKENIZER} is damaged: {str(error)[:200]}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.hash = hashlib.sha256(files[_TOKENIZER]).hexdigest()
        config = _json_object(files, _CONFIG)
        named = {**_json_object(files, _SPECIAL), **config}
        source = files[_TEMPLATE].decode(errors="replace") if _TEMPLATE in files else _template_of(config)
        self.template_hash = hashlib.sha256(source.encode()).hexdigest() if source else ""
        tokens = {name: text for name in named if name.endswith("_token") and (text := _token_text(named[name]))}
        try:
            self._template = ChatTemplate(source, tokens) if source else None
        except TemplateRefused as error:
            raise TokenizerRefused(f"the chat template is damaged: {error}") from None
        added = cast("Mapping[int, Any]", self._tokenizer.get_added_tokens_decoder())
        self.size: int = max([self._tokenizer.get_vocab_size(with_added_tokens=True), *(id_ + 1 for id_ in added)])
        ends = _json_object(files, _GENERATION).get("eos_token_id")
        ends = [*(ends if isinstance(ends, list) else [ends]), self._tokenizer.token_to_id(tokens.get("eos_token", ""))]
        self.end_ids = frozenset(token for token in ends if isinstance(token, int))
        controls = sorted((token.content for token in added.values() if _controls(token)), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, controls))) if controls else None

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, up to where the answer begins.

        Raises:
            TemplateRefused: There is no template, or it does not take these messages.
        """
        if self._template is None:
            raise TemplateRefused("the tokenizer has no chat template")
        rendered = self._template.render([message_fields(message, self._quoted(message.text)) for message in messages])
        return self._ids(rendered)

    def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Tokens of each text."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return tuple(len(encoding.ids) for encoding in encodings)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """Text of one token, special ones included."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _quoted(self, text: str) -> str:
        """The text with what would be read as a control token taken apart: a document must not end a turn and begin another."""
        if self._control is None:
            return text
        while self._control.search(text):
            text = self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}" if len(match[0]) > 1 else " ", text)
        return text


def _controls(token: Any) -> bool:
    """Whether an added token means something to the model; others are but frequent texts, as runs of spaces are."""
    text = str(token.content)
    marked = len(text) > 2 and (text[0], text[-1]) in {("<", ">"), ("[", "]")}
    return bool(text) and not re.search(r"\s", text) and (bool(token.special) or marked)


def _json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value: object = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise TokenizerRefused(f"{name} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerRefused(f"{name} is no JSON object")
    return cast("dict[str, Any]", value)


def _template_of(config: Mapping[str, Any]) -> str:
    found = config.get("chat_template")
    if isinstance(found, list):
        by_name = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = by_name.get("default")
    return found if isinstance(found, str) else ""


def _token_text(value: object) -> str:
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("content")
    return value if isinstance(value, str) else ""
