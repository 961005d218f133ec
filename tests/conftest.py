"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.engines.servers.cassandra import Cassandra
from tests.engines.servers.opensearch import OpenSearchNode

# Machines that run tests are shared and slow now and then; pytest's timeout catches what hangs.
settings.register_profile("loremesh", deadline=None, print_blob=True)
settings.load_profile("loremesh")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not reach a test."""
    for name in list(os.environ):
        if name.startswith("LOREMESH_") and not name.startswith("LOREMESH_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def opensearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSearchNode]:
    """A server for the tests that are marked `engines`."""
    node = OpenSearchNode(tmp_path_factory.mktemp("opensearch"))
    yield node
    node.kill()


@pytest.fixture(scope="session")
def cassandra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cassandra]:
    """A server for the tests that are marked `engines`."""
    node = Cassandra(tmp_path_factory.mktemp("cassandra"))
    yield node
    node.kill()
