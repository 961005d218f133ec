"""What can be set for the knowledge agent."""

from pydantic import BaseModel, ConfigDict, Field


class KnowledgeSettings(BaseModel):
    """Settings of the knowledge agent; times in seconds, sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    default_budget: float = Field(default=30.0, gt=0)
    """Time for a call whose caller sets no deadline; Ingest, WatchRevisions and ReadChanges have none."""
    batch_documents: int = Field(default=256, gt=0, le=4096)
    """Documents that are committed together at the most."""
    batch_bytes: int = Field(default=4 * 1024 * 1024, gt=0)
    """Text that is committed together; one document may have more."""
    batch_wait: float = Field(default=0.05, ge=0)
    """Time that a document waits for others to be committed with."""
    largest_document: int = Field(default=64 * 1024 * 1024, gt=0)
    """Largest document that is accepted."""
    parse_budget: float = Field(default=60.0, gt=0)
    """Time that parsing one file may take."""
    embed_budget: float = Field(default=300.0, gt=0)
    """Time that encoding one batch may take."""
    write_budget: float = Field(default=60.0, gt=0)
    """Time that one commit may take, turns of others included: a writer that was killed has its own for 45 s."""
    changes_page: int = Field(default=500, gt=0, le=10_000)
    """Changes that are read at once."""
