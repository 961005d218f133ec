"""What can be set for the coordinator."""

from pydantic import BaseModel, ConfigDict, Field

from loremesh_agents.domain.coalescing import MOST_TOGETHER


class CoordinatorSettings(BaseModel):
    """Settings of the coordinator; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    default_budget: float = Field(default=30.0, gt=0)
    """Time for a question whose caller sets no deadline, and for a turn without a budget."""
    reserve: float = Field(default=0.05, ge=0)
    """Time kept back for the way to the caller; never more than a tenth of the budget."""
    retrieval_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the budget that retrieval may use."""
    synthesis_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of what is left after retrieval that making the prompt may use."""
    generation_attempts: int = Field(default=4, gt=0)
    """Generators that may write at one answer: where one breaks off, another goes on from its last token."""
    generation_pause: float = Field(default=0.05, ge=0)
    """Time before another generator goes on; twice as long before each further one."""
    heartbeat_interval: float = Field(default=10.0, gt=0)
    """Silence after which a heartbeat is sent."""
    prompt_token_budget: int = Field(default=4096, gt=0)
    """Most tokens of a prompt where the caller does not say."""
    tool_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of what is left for the answer after which no tool is run or offered any more."""
    tool_calls: int = Field(default=4, gt=0, le=4)
    """Calls of one round; further ones are refused."""
    tool_token_budget: int = Field(default=1024, gt=0, le=16384)
    """Most tokens of what one call gives back."""
    tokens_together: int = Field(default=MOST_TOGETHER, gt=0)
    """Tokens of one message at the most, where several are ready together."""
    waiting_turns: int = Field(default=8, gt=0)
    """Turns of a chat that may wait for the one that runs."""
    remembered_turns: int = Field(default=16, gt=0)
    """Turns of a chat that are remembered."""
