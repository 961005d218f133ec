"""The encoder: texts to vectors."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline


class Embedder(Protocol):
    """An embedding model."""

    @property
    def model(self) -> str:
        """Name and version; vectors of different ones cannot be compared."""
        ...

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        ...

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        """Unit vectors, shape (len(texts), dimension), in the order of the texts.

        Raises:
            BackendUnavailable: The model does not answer, or answered with something that is no unit vector of the dimension.
        """
        ...

    async def close(self) -> None:
        """Frees the model."""
        ...
