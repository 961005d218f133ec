"""The documents say what the code does."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository.repository import ROOT
from tools import reference


@pytest.mark.parametrize(
    ("name", "written"), [("cli.md", reference.cli), ("configuration.md", reference.configuration)]
)
def test_the_reference_is_what_the_code_says(name: str, written: Callable[[], str]) -> None:
    assert (ROOT / "docs" / name).read_text() == written(), "run `make reference` and commit what it writes"


def test_every_setting_is_explained() -> None:
    unexplained = re.findall(r"^\| `(\w+)` \| [^|]*\|  \|$", reference.configuration(), flags=re.MULTILINE)
    assert unexplained == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", path.read_text())
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []
