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
    tokens_in_flight: int = Field(default=524_288, gt=0)
    """Tokens of prompts and of the longest answers that may come of them that one engine may be at work on; further generations wait. A process of its own counts its own."""
    principal_share: float = Field(default=0.8, gt=0, lt=1)
    """Share of these tokens that one principal may hold where nobody else asks; the rest is free for who comes next. All anonymous callers are one principal."""
    queue_length: int = Field(default=256, gt=0)
    """Generations that may wait; beyond, the principal that waits for most tokens loses its last one with OVERLOADED."""
    queue_seconds: float = Field(default=10.0, gt=0)
    """Time for which a generation may wait; one that would wait longer is refused with OVERLOADED at once."""
