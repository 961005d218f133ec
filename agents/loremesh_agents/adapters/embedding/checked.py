"""Vectors are looked at once, where they enter: what is stored of a document is compared for as long as it lives."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable
from loremesh_agents.ports.embedding import Embedder

_log = logging.getLogger(__name__)
_ROUNDING = 1e-3


class CheckedEmbedder:
    """See `ports.embedding.Embedder`: another one, whose vectors are what the port promises.

    Args:
        inner: The encoder.
    """

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner

    @property
    def model(self) -> str:
        """See the port."""
        return self._inner.model

    @property
    def dimension(self) -> int:
        """See the port."""
        return self._inner.dimension

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        """See the port."""
        vectors = await self._inner.embed(texts, deadline=deadline)
        if vectors.shape != (len(texts), self.dimension):
            _log.error(
                "the encoder %s gave vectors of shape %s for %d texts; its dimension is %d",
                *(self.model, vectors.shape, len(texts), self.dimension),
            )
        elif not (abs(np.linalg.norm(vectors, axis=1) - 1) < _ROUNDING).all():
            # A NaN is less than nothing, so it ends here as well.
            _log.error("the encoder %s gave vectors that are no unit vectors", self.model)
        else:
            return vectors.astype(np.float32, copy=False)
        raise BackendUnavailable("encoder")

    async def close(self) -> None:
        """See the port."""
        await self._inner.close()
