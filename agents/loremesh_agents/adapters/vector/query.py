"""What a question's vector must be."""

import logging

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.errors import BackendUnavailable

_log = logging.getLogger(__name__)


def require_comparable(vector: NDArray[np.float32], dimension: int, collection: str) -> None:
    """Raises where a question's vector cannot be compared with those of a collection; the log says why.

    Raises:
        BackendUnavailable: It has another length, or holds something that is no number. Retrieval goes on without vectors.
    """
    if vector.shape != (dimension,):
        _log.error(
            "the question's vector has shape %s, but those of collection %s have %d numbers: another embedder wrote them",
            vector.shape,
            collection,
            dimension,
        )
    elif not np.isfinite(vector).all():
        _log.error("the question's vector for collection %s holds something that is no finite number", collection)
    else:
        return
    raise BackendUnavailable(f"vector index of {collection}")
