"""What can be set for the retriever."""

from pydantic import BaseModel, ConfigDict, Field


class RetrieverSettings(BaseModel):
    """Settings of the retriever; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    default_budget: float = Field(default=10.0, gt=0)
    """Time for a call whose caller sets no deadline."""
    vector_candidates: int = Field(default=100, gt=0, le=1000)
    """Passages that the vector index proposes; 0.4 of them in the fast profile."""
    text_candidates: int = Field(default=100, gt=0, le=1000)
    """Passages that the text index proposes; 0.4 of them in the fast profile."""
    titles_per_entity: int = Field(default=20, gt=0, le=1000)
    """Passages followed from an entity whose name they bear."""
    vector_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the time left that encoding the question and searching vectors may use."""
    text_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the time left that searching text may use."""
    expansion_reserve: float = Field(default=0.01, ge=0)
    """Time that must be left for another round through the graph."""
    ranker: str = ""
    """File of a trained ranker, or `none`. Default: the one that comes with loremesh."""
    longest_question: int = Field(default=20_000, gt=0)
    """Characters of a question that are searched; the rest is left out and named."""
