"""What every encoder does, and what becomes of one that does not."""

import asyncio
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from loremesh_agents.adapters.embedding.checked import CheckedEmbedder
from loremesh_agents.adapters.embedding.minilm import MiniLmEmbedder, find_model
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, ConfigurationError
from loremesh_agents.ports.embedding import Embedder
from tests.documents import soon

TEXTS = (
    "London Bridge crosses the Thames.",
    "Tea",
    "The quiet protocol is spoken by nobody, and by nobody it is understood. " * 20,
    "object.__exit__(self, exc_type, exc_value, traceback)",
    "",
)


class LetterEmbedder:
    """Counts letters; texts with the same letters are the same to it."""

    model = "letters"
    dimension = 16

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        if deadline.expired:
            raise BudgetExhausted("encoder", "encoding")
        counts = np.ones((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for letter in text:
                counts[row, zlib.crc32(letter.encode()) % self.dimension] += 1
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    async def close(self) -> None:
        return


@pytest.fixture(scope="module")
def model_folder() -> Path:
    found = find_model(None)
    assert found is not None, "make install brings the encoder's weights"
    return found


@pytest.fixture(scope="module")
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the graph of the published weights is kept once it is built."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=["minilm", "letters"])
def embedder(request: pytest.FixtureRequest) -> Iterator[Embedder]:
    if request.param == "letters":
        yield CheckedEmbedder(LetterEmbedder())
        return
    folder, cache = request.getfixturevalue("model_folder"), request.getfixturevalue("graph_cache")
    minilm = CheckedEmbedder(MiniLmEmbedder(folder, cache=cache, threads=1))
    yield minilm
    asyncio.run(minilm.close())


def require_units(vectors: NDArray[np.float32], count: int, dimension: int) -> None:
    assert vectors.shape == (count, dimension)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


async def test_vectors_are_unit_vectors_of_the_dimension(embedder: Embedder) -> None:
    require_units(await embedder.embed(TEXTS, deadline=soon()), len(TEXTS), embedder.dimension)
    assert embedder.model


async def test_of_no_texts_there_are_no_vectors(embedder: Embedder) -> None:
    require_units(await embedder.embed((), deadline=soon()), 0, embedder.dimension)


async def test_a_text_has_its_vector_whatever_stands_beside_it(embedder: Embedder) -> None:
    together = await embedder.embed(TEXTS, deadline=soon())
    backwards = await embedder.embed(TEXTS[::-1], deadline=soon())
    alone = np.concatenate([await embedder.embed([text], deadline=soon()) for text in TEXTS])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(backwards[::-1], alone, atol=1e-5)
    assert len({tuple(vector) for vector in np.round(alone, 3).tolist()}) == len(TEXTS)


async def test_many_texts_keep_their_order(embedder: Embedder) -> None:
    texts = [f"Number {n}. " * (1 + n * 7 % 30) for n in range(60)]
    vectors = await embedder.embed(texts, deadline=soon())
    require_units(vectors, len(texts), embedder.dimension)
    for place in (0, 17, 59):
        (alone,) = await embedder.embed([texts[place]], deadline=soon())
        assert np.allclose(vectors[place], alone, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "?!…",
        "\x00\x01\ufffd",
        "日本語のテキスト",
        "Καλημέρα κόσμε",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "👩‍👩‍👧‍👦 🏳️‍🌈",
        "e\u0301\u0327" * 50,
        "word " * 20_000,
        "x" * 100_000,
    ],
    ids=[
        *("empty", "white space", "punctuation", "control", "Japanese", "Greek", "Arabic", "Hindi", "emoji"),
        *("accents", "100 kB", "100 kB word"),
    ],
)
async def test_any_text_has_a_vector(embedder: Embedder, text: str) -> None:
    vectors = await embedder.embed([text, text], deadline=soon())
    require_units(vectors, 2, embedder.dimension)
    assert np.allclose(vectors[0], vectors[1], atol=1e-5)


async def test_a_passed_deadline_is_said_and_harms_nobody(embedder: Embedder) -> None:
    before = await embedder.embed(TEXTS, deadline=soon())
    with pytest.raises(BudgetExhausted):
        await embedder.embed(TEXTS, deadline=Deadline.after(-1))
    assert np.allclose(await embedder.embed(TEXTS, deadline=soon()), before, atol=1e-5)


async def test_callers_at_once_get_each_their_own(embedder: Embedder) -> None:
    found = await asyncio.gather(*(embedder.embed([text], deadline=soon()) for text in TEXTS))
    assert np.allclose(np.concatenate(found), await embedder.embed(TEXTS, deadline=soon()), atol=1e-5)


# From here on: an encoder that breaks its promise.


class BrokenEmbedder(LetterEmbedder):
    """Gives what it was told to."""

    def __init__(self, vectors: NDArray[np.floating]) -> None:
        self.vectors = vectors

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        return self.vectors


UNITS = np.eye(2, 16)


@pytest.mark.parametrize(
    "vectors",
    [
        np.where(UNITS > 0, np.nan, 0),
        np.where(UNITS > 0, np.inf, 0),
        np.zeros((2, 16)),
        UNITS * 1.01,
        np.concatenate([UNITS[:1], UNITS[1:] * 0.5]),
        UNITS[:1],
        UNITS[:, :15],
        np.eye(3, 16),
        UNITS[0],
    ],
    ids=["NaN", "infinite", "zero", "too long", "one too short", "one missing", "narrow", "one too many", "flat"],
)
async def test_what_is_no_unit_vector_does_not_pass(
    vectors: NDArray[np.floating], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BackendUnavailable, match="encoder"):
        await CheckedEmbedder(BrokenEmbedder(vectors)).embed(["a", "b"], deadline=soon())
    assert "the encoder letters gave vectors" in caplog.text


async def test_double_precision_and_rounding_pass() -> None:
    vectors = await CheckedEmbedder(BrokenEmbedder(UNITS * 1.0001)).embed(["a", "b"], deadline=soon())
    require_units(vectors, 2, 16)


# From here on: all-MiniLM-L6-v2.


async def test_minilm_agrees_with_what_is_published_of_it(model_folder: Path, graph_cache: Path) -> None:
    minilm = MiniLmEmbedder(model_folder, cache=graph_cache, threads=1)
    texts = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
    vectors = await minilm.embed(texts, deadline=soon())
    # From the model's usage example at its publisher's.
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    # In 32 bits; matrices of 8 bits move a cosine by up to 0.016 here.
    assert np.allclose(vectors @ vectors.T, published, atol=0.02)
    await minilm.close()


async def test_minilm_gives_a_text_the_same_vector_whatever_it_is_encoded_with(
    model_folder: Path, graph_cache: Path
) -> None:
    minilm = MiniLmEmbedder(model_folder, cache=graph_cache, threads=2)
    texts = [f"Text {number} is {'rather ' * number}long." for number in range(40)]
    together = await minilm.embed(texts, deadline=soon())
    alone = [await minilm.embed([text], deadline=soon()) for text in texts[::-1]]
    assert np.array_equal(together[::-1], np.concatenate(alone))
    await minilm.close()


async def test_minilm_reads_no_more_than_256_tokens(model_folder: Path, graph_cache: Path) -> None:
    minilm = MiniLmEmbedder(model_folder, cache=graph_cache, threads=1)
    # A word is a token; two more frame the text.
    shorter, whole, longer = (f"{'tea ' * count}cat" for count in (252, 253, 254))
    vectors = await minilm.embed([shorter, whole, longer, "tea " * 300], deadline=soon())
    assert not np.allclose(vectors[0], vectors[1], atol=1e-5)
    assert not np.allclose(vectors[1], vectors[2], atol=1e-5)
    assert np.allclose(vectors[2], vectors[3], atol=1e-5)
    await minilm.close()


def test_weights_that_are_not_the_published_ones_are_refused_by_name(model_folder: Path, tmp_path: Path) -> None:
    shutil.copy(model_folder / "tokenizer.json", tmp_path)
    weights = tmp_path / "model.safetensors"
    with (model_folder / weights.name).open("rb") as whole:
        weights.write_bytes(whole.read(1_000_000))
    with pytest.raises(ConfigurationError, match=f"{weights} is not the published model"):
        MiniLmEmbedder(tmp_path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_tokenizer_is_refused_by_name(model_folder: Path, graph_cache: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes((model_folder / tokenizer.name).read_bytes()[:200_000])
    (tmp_path / "model.safetensors").symlink_to(model_folder / "model.safetensors")
    with pytest.raises(ConfigurationError, match=str(tokenizer)):
        MiniLmEmbedder(tmp_path, cache=graph_cache)


async def test_a_damaged_graph_is_built_again(
    model_folder: Path, graph_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await MiniLmEmbedder(model_folder, cache=graph_cache, threads=1).close()
    (graph,) = graph_cache.glob("*.onnx")
    built = graph.read_bytes()
    graph.write_bytes(built[:-1000])
    again = MiniLmEmbedder(model_folder, cache=graph_cache, threads=1)
    require_units(await again.embed(["tea"], deadline=soon()), 1, again.dimension)
    await again.close()
    assert graph.read_bytes() == built
    assert f"{graph} is damaged and is built again" in caplog.text


def test_a_folder_without_the_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(ConfigurationError, match=rf"{tmp_path} .* holds no model\.safetensors$"):
        find_model(tmp_path)
