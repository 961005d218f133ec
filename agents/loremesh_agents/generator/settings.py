"""What can be set for the generator."""

from pydantic import BaseModel, ConfigDict, Field

from loremesh_agents.domain.coalescing import MOST_TOGETHER


class GeneratorSettings(BaseModel):
    """Settings of the generator; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    default_budget: float = Field(default=60.0, gt=0)
    """Time for a call whose caller sets no deadline."""
    default_max_tokens: int = Field(default=1024, gt=0)
    """Most tokens of an answer where the caller does not say."""
    tokens_together: int = Field(default=MOST_TOGETHER, gt=0)
    """Tokens of one message at the most, where several are ready together."""
