"""What the status of a Gremlin server's answer means to a caller."""

import pytest

from loremesh_agents.adapters.graph.gremlin.errors import refused
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    ConfigurationError,
    StorageFull,
    WriteConflict,
)


@pytest.mark.parametrize(
    ("code", "message", "meaning"),
    [
        (598, "timeout", BudgetExhausted),
        (401, "no", ConfigurationError),
        (500, "Undefined type used in query: label", ConfigurationError),
        (500, "No space left on device", StorageFull),
        (597, "Write request failed because disk usage exceeds failure threshold", StorageFull),
        (500, "ConcurrentModificationException", WriteConflict),
        (500, "Could not execute operation due to backend exception", BackendUnavailable),
        (500, "Could not commit transaction due to exception during persistence", BackendUnavailable),
        (500, "No such property: x", RuntimeError),
    ],
)
def test_a_refusal_is_told_as_what_a_caller_can_do_about_it(code: int, message: str, meaning: type[Exception]) -> None:
    assert type(refused("janusgraph", code, message)) is meaning
