"""How the URL of a Neo4j server is read."""

import pytest

from loremesh_agents.adapters.graph.neo4j import Address
from loremesh_agents.domain.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("bolt://ada@db:7688/lore", Address("bolt://db:7688", "ada", "lore")),
        ("neo4j+s://ada@db.example.org/lore", Address("neo4j+s://db.example.org:7687", "ada", "lore")),
        ("bolt+ssc://[::1]", Address("bolt+ssc://[::1]:7687", "", "")),
        ("bolt://a%40b@db/", Address("bolt://db:7687", "a@b", "")),
    ],
)
def test_a_url_says_where_and_who_and_which(url: str, address: Address) -> None:
    assert Address.parse("stores.graph", url) == address


@pytest.mark.parametrize(
    "url",
    [
        "bolt://",
        "bolt:///lore",
        "bolt://db:port",
        "bolt://db:99999",
        "bolt://db/one/two",
        "bolt://db/lore?policy=eu",
        "bolt://db/lore#1",
        "bolt://d b",
        "http://db",
        "bolt://[::1",
    ],
)
def test_any_other_url_is_refused_with_the_form_that_it_must_have(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"stores\.graph .*bolt://user@host:7687/database"):
        Address.parse("stores.graph", url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match=r"stores\.graph_password") as refused:
        Address.parse("stores.graph", "bolt://ada:swordfish@db/lore")
    assert "swordfish" not in str(refused.value)
