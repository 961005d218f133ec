"""How the URLs of Gremlin servers are read, and how requests to Neptune are signed."""

from datetime import UTC, datetime

import pytest

from loremesh_agents.adapters.graph.gremlin.endpoint import janusgraph_endpoint
from loremesh_agents.adapters.graph.gremlin.neptune import neptune_endpoint
from loremesh_agents.adapters.graph.gremlin.signature import Credentials, signed_headers
from loremesh_agents.domain.errors import ConfigurationError

KEY = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
CLUSTER = "neptune+wss://lore.cluster-c1.eu-west-1.neptune.amazonaws.com:8182"


def test_a_url_says_where_and_who_and_which_source() -> None:
    endpoint = janusgraph_endpoint("stores.graph", "gremlin+ws://a%40b@db:8182/lore", "swordfish")
    assert (endpoint.url, endpoint.username, endpoint.source) == ("ws://db:8182/gremlin", "a@b", "lore")
    assert "swordfish" not in repr(endpoint)
    assert janusgraph_endpoint("stores.graph", "gremlin+ws://[::1]:8182", "").url == "ws://[::1]:8182/gremlin"


@pytest.mark.parametrize(
    "url",
    [
        "gremlin+ws://",
        "gremlin+ws:///g",
        "gremlin+ws://db/g",
        "gremlin+ws://db:port/g",
        "gremlin+ws://db:99999/g",
        "gremlin+ws://db:8182/one/two",
        "gremlin+ws://db:8182/g?x=1",
        "gremlin+ws://d b:8182/g",
    ],
)
def test_any_other_url_is_refused_with_the_form_that_it_must_have(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"stores\.graph .*gremlin\+ws://user@host:8182/g"):
        janusgraph_endpoint("stores.graph", url, "")


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match=r"stores\.graph_password") as refused:
        janusgraph_endpoint("stores.graph", "gremlin+ws://ada:swordfish@db:8182/g", "")
    assert "swordfish" not in str(refused.value)


def test_a_signature_is_the_one_that_aws_publishes() -> None:
    # The case get-vanilla of the test suite of Signature Version 4.
    headers = signed_headers(
        KEY,
        host="example.amazonaws.com",
        path="/",
        region="us-east-1",
        service="service",
        at=datetime(2015, 8, 30, 12, 36, tzinfo=UTC),
    )
    assert headers == {
        "x-amz-date": "20150830T123600Z",
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request,"
        " SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    }


def test_the_region_is_that_of_the_clusters_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    assert "/eu-west-1/neptune-db/aws4_request" in neptune_endpoint("stores.graph", CLUSTER).headers()["authorization"]
    elsewhere = neptune_endpoint("stores.graph", "neptune+wss://127.0.0.1:8182").headers()["authorization"]
    assert "/us-east-1/neptune-db/aws4_request" in elsewhere


def test_a_name_without_a_region_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(ConfigurationError, match="AWS_REGION"):
        neptune_endpoint("stores.graph", "neptune+wss://127.0.0.1:8182")


def test_without_credentials_nothing_is_signed_and_half_of_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    endpoint = neptune_endpoint("stores.graph", CLUSTER)
    assert endpoint.headers() == {}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY"):
        endpoint.headers()
