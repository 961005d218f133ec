"""Writers that die anywhere, zombies, and readers in between, on an engine without transactions: nobody sees half a write or goes back in time."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh_agents.adapters.graph.versioned import writer
from tests.conformance.simulation import Simulation, operations_of


@pytest.mark.parametrize("transactions", [False, True])
@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32), count=st.sampled_from([6, 6, 30]), in_parts=st.booleans())
async def test_what_is_seen_is_what_a_store_in_memory_shows_after_the_committed_writes(
    seed: int, count: int, transactions: bool, in_parts: bool
) -> None:
    simulation = Simulation(seed, transactions=transactions)
    await simulation.begin()
    chance = simulation.random
    # As with large writes, of which parts are sent while the rest is computed.
    with patch.object(writer, "_SENT_IN_PARTS", 0 if in_parts else 1 << 20):
        await simulation.run(
            simulation.writer(operations_of(chance, count)),
            simulation.writer(operations_of(chance, count)),
            simulation.reader(count),
            simulation.reader(count),
        )
        await simulation.check()
