"""What can be set for the generator."""

from pydantic import BaseModel, ConfigDict, Field


class GeneratorSettings(BaseModel):
    """Settings of the generator; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_budget: float = Field(default=60.0, gt=0)
    """Time for a call whose caller sets no deadline."""
    default_max_tokens: int = Field(default=1024, gt=0)
    """Most tokens of an answer where the caller does not say."""
