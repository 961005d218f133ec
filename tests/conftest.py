"""What all tests share."""

import os

import pytest
from hypothesis import settings

# Machines that run tests are shared and slow now and then; pytest's timeout catches what hangs.
settings.register_profile("loremesh", deadline=None, print_blob=True)
settings.load_profile("loremesh")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not reach a test."""
    for name in list(os.environ):
        if name.startswith("LOREMESH_") and not name.startswith("LOREMESH_TEST_"):
            monkeypatch.delenv(name)
