"""A tokenizer that is trained on the spot, and a "model" whose answers are known: doubles of engines speak it."""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONTEXT = 131_072
ANSWERS = (
    "Jane Doe was born in Köln — 日本語 and 한국어 are spoken there 🙂👍🏽, says é (e\u0301) the naïve résumé of 1975.",
    "The anvil is heavy, and Lisbon lies at the sea; 東京 does as well 🏳️‍🌈 and so on, until the end of it.",
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
BEGIN, END, ASSISTANT = (SPECIAL.index(token) for token in ("<s>", "</s>", "<|assistant|>"))
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@cache
def tokenizer() -> Tokenizer:
    """Byte-level BPE, so small that most code points outside ASCII are several tokens."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    built.train_from_iterator(["Where was Jane Doe, who leads Acme, born? The anvil of the sea is heavy."], trainer)
    return built


@cache
def files() -> dict[str, bytes]:
    """What is published with a model."""
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    return {
        "tokenizer.json": tokenizer().to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "config.json": b"{}",
    }


def archive(members: dict[str, bytes] | None = None) -> bytes:
    """The files as engines send them."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in (members or files()).items():
            written.writestr(name, content)
    return data.getvalue()


def prompt(text: str) -> list[int]:
    """Ids of a conversation of one message of a user, written down by hand."""
    ids = tokenizer().encode(text, add_special_tokens=False).ids
    return [BEGIN, SPECIAL.index("<|user|>"), *ids, END, ASSISTANT]


def answer_ids(conversation: Sequence[int], schema: bool = False) -> list[int]:
    """The whole answer to a conversation, without the token that ends it."""
    chosen = int(hashlib.sha256(bytes(str(list(conversation)), "ascii")).hexdigest(), 16) % len(ANSWERS)
    return tokenizer().encode('{"a": "日本"}' if schema else ANSWERS[chosen], add_special_tokens=False).ids


def continuation(ids: Sequence[int], *, schema: bool = False) -> list[int]:
    """What follows: the rest of the answer, where a part of it is there, and the token that ends it."""
    place = len(ids) - 1 - list(reversed(ids)).index(ASSISTANT) + 1
    whole, emitted = answer_ids(ids[:place], schema), list(ids[place:])
    assert whole[: len(emitted)] == emitted, "what is gone on with is not the beginning of the answer"
    return [*whole[len(emitted) :], END]
