"""Doubles of encoders: small, deterministic, and different from one another."""

import asyncio
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.lexicon import search_terms


class HashingEmbedder:
    """Texts that share words are near each other; how near differs from model to model.

    Args:
        model: Its name, which is also the seed of its hashes.
        dimension: Of its vectors.
    """

    def __init__(self, model: str, dimension: int) -> None:
        self.model = model
        self.dimension = dimension
        self.texts: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    def vector(self, text: str) -> NDArray[np.float32]:
        """The vector of a text."""
        vector = np.full(self.dimension, 0.01, dtype=np.float32)
        for term in search_terms(text):
            vector[zlib.crc32(f"{self.model} {term}".encode()) % self.dimension] += 1
        return vector / np.linalg.norm(vector)

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        """Waits for the gate."""
        self.reached.set()
        await self.gate.wait()
        self.texts += texts
        return np.stack([self.vector(text) for text in texts])

    async def close(self) -> None:
        return
