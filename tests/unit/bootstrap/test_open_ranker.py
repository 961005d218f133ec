"""The ranker that the settings name."""

from pathlib import Path

import pytest

from loremesh_agents.bootstrap.backends import open_ranker
from loremesh_agents.domain.errors import ConfigurationError


def test_the_ranker_that_ships_says_what_it_was_trained_on() -> None:
    ranker = open_ranker("")
    assert ranker is not None
    assert "2wiki-train" in ranker.trained_on


def test_there_may_be_none() -> None:
    assert open_ranker("none") is None


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), ("{", "damaged"), ('{"trees": []}', "damaged")]
)
def test_a_file_that_is_no_ranker_is_refused_by_name(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "ranker.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=reason) as refused:
        open_ranker(str(path))
    assert str(path) in str(refused.value)
    assert "retriever.ranker" in str(refused.value)
