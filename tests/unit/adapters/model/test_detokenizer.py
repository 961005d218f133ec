"""Text comes out of tokens as soon as it is whole, and never changes afterwards."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from loremesh_agents.adapters.model.detokenizer import Detokenizer, Piece, StopTexts

CORPUS = [
    "The naïve café of Köln, 日本語と한국어, emoji 🙂👍🏽🏳️‍🌈 and combining e\u0301 a\u0308 n\u0303 marks; don't, isn't.",
    "A second sentence with  double  spaces, tabs\tand\nnew lines.  Привет мир, שלום עולם, नमस्ते दुनिया.",
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [*" .,'\n\t", "🙂", "👍🏽", "🏳️‍🌈", "日本", "é", "e\u0301", "नि", "The", " naïve", "don't", "\u200d"]
        ),
        st.text(max_size=4),
    ),
    max_size=25,
).map("".join)


def byte_level() -> Tokenizer:
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False, special_tokens=["<s>"]),
    )
    return built


def word_piece() -> Tokenizer:
    built = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=False)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece()
    built.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=160, show_progress=False, special_tokens=["[UNK]"])
    )
    return built


def unigram() -> Tokenizer:
    built = Tokenizer(models.Unigram())
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    built.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=120, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]),
    )
    return built


def byte_fallback() -> Tokenizer:
    """As Llama 2 has it: what is in no word comes as its bytes."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in ("▁", "▁The", "T", "h", "e", "The", "n", "▁n", "日", "."):
        vocabulary[piece] = len(vocabulary)
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return built


TOKENIZERS = {built.__name__: built() for built in (byte_level, word_piece, unigram, byte_fallback)}
STABLE = {name: built for name, built in TOKENIZERS.items() if name != "byte_fallback"}


def decoder(built: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda ids: built.decode(list(ids), skip_special_tokens=True)


def fed(detokenizer: Detokenizer, ids: Sequence[int]) -> list[Piece]:
    return [piece for token in ids if (piece := detokenizer.add(token)) is not None]


def joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS)
@example(text="🙂日本 é🏳️‍🌈.")
def test_every_prefix_of_a_text_is_what_decoding_it_at_once_gives(name: str, text: str) -> None:
    built = TOKENIZERS[name]
    decode = decoder(built)
    ids = built.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(decode)
    given_out = ""
    for place, token in enumerate(ids):
        piece = detokenizer.add(token)
        given_out += piece.text if piece else ""
        at_once = decode(ids[: place + 1])
        if "\ufffd" in at_once and name not in STABLE:
            # Such a decoder takes back what is whole, as long as what follows is not.
            continue
        assert at_once.startswith(given_out)
        # What is missing are tokens of which the last one ends within a code point.
        assert at_once[len(given_out) :][-1:] in ("", "\ufffd")
    last = detokenizer.finish(complete=True)
    assert given_out + (last.text if last else "") == decode(ids)


@pytest.mark.parametrize("name", STABLE)
@given(data=st.data())
def test_any_tokens_give_what_decoding_them_at_once_gives(name: str, data: st.DataObject) -> None:
    built = STABLE[name]
    decode = decoder(built)
    ids = data.draw(st.lists(st.integers(0, built.get_vocab_size() - 1), max_size=40))
    detokenizer = Detokenizer(decode)
    pieces: list[Piece] = []
    for place, token in enumerate(ids):
        pieces += [piece] if (piece := detokenizer.add(token)) else []
        assert decode(ids[: place + 1]).startswith(joined(pieces))
    pieces += [piece] if (piece := detokenizer.finish(complete=True)) else []
    assert joined(pieces) == decode(ids)
    assert [token for piece in pieces for token in piece.token_ids] == ids


@given(ids=st.lists(st.integers(0, 266), max_size=40))
def test_byte_tokens_that_are_no_text_lose_no_token(ids: list[int]) -> None:
    pieces = fed(detokenizer := Detokenizer(decoder(TOKENIZERS["byte_fallback"])), ids)
    pieces += [piece] if (piece := detokenizer.finish(complete=True)) else []
    assert [token for piece in pieces for token in piece.token_ids] == ids
    joined(pieces).encode()


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, cut=st.integers(0, 60))
def test_a_text_is_gone_on_with_from_any_token(name: str, text: str, cut: int) -> None:
    built = TOKENIZERS[name]
    decode = decoder(built)
    ids = built.encode(text, add_special_tokens=False).ids
    before = Detokenizer(decode)
    begun = fed(before, ids[:cut])
    begun += [piece] if (piece := before.finish(complete=False)) else []
    after = Detokenizer(decode, ids[:cut])
    rest = fed(after, ids[cut:])
    rest += [piece] if (piece := after.finish(complete=True)) else []
    assert joined(begun) + joined(rest) == decode(ids)
    assert [token for piece in rest for token in piece.token_ids] == ids[cut:]


def test_bytes_that_never_become_text_do_not_hold_the_stream_up() -> None:
    built = TOKENIZERS["byte_level"]
    broken = built.encode("é", add_special_tokens=False).ids[0]
    detokenizer = Detokenizer(decoder(built))
    out = sum(piece.token_count for piece in fed(detokenizer, [built.token_to_id("Ċ"), *[broken] * 200]))
    assert out > 190


def reference(text: str, stops: Sequence[str]) -> str:
    """Letter by letter: the text up to the first stop text that is whole."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


@given(
    text=st.text("ab\n🙂", max_size=30),
    stops=st.lists(st.text("ab\n🙂", min_size=1, max_size=4), max_size=4),
    data=st.data(),
)
def test_a_stop_text_ends_the_answer_wherever_the_borders_are(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    wanted = reference(text, stops)
    stopping = StopTexts(stops)
    out = ""
    for number, part in enumerate(parts):
        out += joined(stopping.add(Piece(part, (number,))))
        assert wanted.startswith(out)
        if stopping.stopped:
            break
    assert stopping.stopped == (wanted != text or any(text.endswith(stop) and wanted + stop == text for stop in stops))
    assert out + ("" if stopping.stopped else joined(stopping.flush())) == wanted
