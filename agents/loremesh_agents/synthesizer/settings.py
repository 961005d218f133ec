"""What can be set for the synthesizer."""

from pydantic import BaseModel, ConfigDict, Field


class SynthesizerSettings(BaseModel):
    """Settings of the synthesizer; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    default_budget: float = Field(default=10.0, gt=0)
    """Time for a call whose caller sets no deadline."""
    default_token_budget: int = Field(default=4096, gt=0)
    """Most tokens of a prompt where the caller does not say."""
    duplicate_share: float = Field(default=0.8, gt=0, le=1)
    """Share of a passage's word runs that must be in an earlier source for it to be a duplicate."""
    most_evidence: int = Field(default=100, gt=0, le=100)
    """Pieces of evidence taken; more are left out."""
    counting_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the time left that counting tokens may use."""
