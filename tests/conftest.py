"""What all tests share."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not reach a test."""
    for name in list(os.environ):
        if name.startswith("LOREMESH_") and not name.startswith("LOREMESH_TEST_"):
            monkeypatch.delenv(name)
