"""URLs of servers, good and bad."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loremesh_agents.adapters.graph.memory import MemoryGraphStore
from loremesh_agents.adapters.text.opensearch import OpenSearchTextIndex
from loremesh_agents.adapters.vector.cassandra import CassandraVectorIndex
from loremesh_agents.adapters.vector.opensearch import OpenSearchVectorIndex
from loremesh_agents.bootstrap.backends import open_text, open_vectors
from loremesh_agents.bootstrap.server_urls import parse_server_url
from loremesh_agents.bootstrap.settings import StoreSettings, effective, load
from loremesh_agents.domain.errors import ConfigurationError


def test_a_url_may_name_several_nodes_and_options() -> None:
    url = "opensearch+https://a,b:9201,[::1]:9202/docs?shards=3"
    found = parse_server_url("stores.text", url, default_port=9200, counts=("shards",))
    assert found.nodes == (("a", 9200), ("b", 9201), ("::1", 9202))
    assert (found.scheme, found.name, found.count("shards"), found.count("replicas")) == (
        "opensearch+https",
        "docs",
        3,
        None,
    )


@pytest.mark.parametrize(
    ("rest", "rule"),
    [
        ("/docs", "a host and a port"),
        ("host:99999/docs", "a host and a port"),
        ("host:port/docs", "a host and a port"),
        ("a,,b/docs", "a host and a port"),
        ("host:9200", "its path is a name"),
        ("host:9200/Docs", "its path is a name"),
        ("host:9200/docs/more", "its path is a name"),
        ("host:9200/docs;drop", "its path is a name"),
        ("host:9200/docs?shards=many", "shards=many"),
        ("host:9200/docs?colour=red", "colour=red"),
    ],
)
def test_what_is_wrong_is_refused_with_setting_value_and_rule(rest: str, rule: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_text(StoreSettings(text=f"opensearch+http://{rest}"), MemoryGraphStore())
    assert "stores.text" in str(refused.value)
    assert rest.partition("?")[0] in str(refused.value)
    assert rule in str(refused.value)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_vectors(StoreSettings(vectors="cassandra://eva:sesame@host:9042/docs"), MemoryGraphStore())
    assert "stores.vectors_password" in str(refused.value)
    assert "sesame" not in str(refused.value)


def test_a_missing_file_of_authorities_is_refused(tmp_path: Path) -> None:
    settings = StoreSettings(text="opensearch+https://host:9200/docs", ca=tmp_path / "none.pem")
    with pytest.raises(ConfigurationError, match=r"stores\.ca .*none\.pem"):
        open_text(settings, MemoryGraphStore())


async def test_urls_choose_the_indexes() -> None:
    graph = MemoryGraphStore()
    assert open_text(StoreSettings(), graph) is None
    chosen = [
        open_text(StoreSettings(text="opensearch+http://127.0.0.1:9200/docs"), graph),
        open_vectors(StoreSettings(vectors="opensearch+http://127.0.0.1:9200/docs?shards=2&replicas=0"), graph),
        open_vectors(StoreSettings(vectors="cassandra://127.0.0.1,127.0.0.2/docs?datacenter=dc1"), graph),
    ]
    kinds = [OpenSearchTextIndex, OpenSearchVectorIndex, CassandraVectorIndex]
    assert [type(index) for index in chosen] == kinds
    for index in chosen:
        assert index is not None
        await index.close()


def test_passwords_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOREMESH_STORES__TEXT_PASSWORD", "sesame")
    loaded = load()
    assert loaded.settings.stores.text_password.get_secret_value() == "sesame"
    assert "sesame" not in json.dumps(effective(loaded)) + repr(loaded.settings)


def test_drivers_are_imported_only_when_they_are_chosen() -> None:
    program = (
        "import sys; from loremesh_agents.bootstrap import backends, serve;"
        " print([name for name in ('opensearchpy', 'cassandra', 'aiohttp') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
