"""The encoders that an agent has, and which of them a collection wants."""

from collections.abc import Mapping, Sequence

from loremesh_agents.domain.document import CollectionVectors
from loremesh_agents.ports.embedding import Embedder


class Encoders:
    """Encoders by their models.

    Args:
        embedder: For new collections; None for none.
        previous: For collections that are not embedded anew yet; None for none.
    """

    def __init__(self, embedder: Embedder | None, previous: Embedder | None = None) -> None:
        self._embedder = embedder
        self._by_model: Mapping[str, Embedder] = {
            found.model: found for found in (previous, embedder) if found is not None
        }

    @property
    def model(self) -> str:
        """The model of new collections; empty where they get no vectors."""
        return self._embedder.model if self._embedder is not None else ""

    @property
    def models(self) -> Sequence[str]:
        """All models that there is an encoder for."""
        return tuple(self._by_model)

    def of(self, model: str) -> Embedder | None:
        """The encoder of a model, if there is one."""
        return self._by_model.get(model)

    def wanted(self, collection: CollectionVectors | None) -> tuple[str, ...]:
        """The models of which a passage of a collection gets a vector, as far as there are encoders: first that which counts, empty for no vectors.

        Args:
            collection: As it is; None for one that is to be made.
        """
        if collection is None or not collection.passage_count:
            return (self.model,)
        other = collection.reembedding
        counting = collection.model
        if counting not in self._by_model and (counting or other is None):
            # What the store refuses, unless the collection changes until then.
            counting = self.model
        further = other.model if other is not None and other.written else ""
        return (counting, *((further,) if further in self._by_model and further != counting else ()))
