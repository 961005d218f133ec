"""The engine that the settings name."""

import pytest
from pydantic import SecretStr

from loremesh_agents.adapters.model.openai_http import OpenAiModel
from loremesh_agents.adapters.model.token_model import TokenModel
from loremesh_agents.bootstrap import settings
from loremesh_agents.bootstrap.backends import open_model
from loremesh_agents.bootstrap.settings import LanguageModelSettings, StoreSettings
from loremesh_agents.domain.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("vllm+grpc://127.0.0.1:50051", TokenModel),
        ("trtllm+grpc://[::1]:50051", TokenModel),
        ("openai+http://localhost:8000/v1", OpenAiModel),
        ("openai+https://api.example.com/v1", OpenAiModel),
    ],
)
async def test_an_engine_is_opened_before_it_is_there(url: str, kind: type) -> None:
    model = open_model(StoreSettings(model=url), LanguageModelSettings())
    assert isinstance(model, kind)
    await model.close()


@pytest.mark.parametrize(
    "url",
    [
        "vllm+grpc://127.0.0.1",
        "vllm+grpc://:50051",
        "vllm+grpc://127.0.0.1:50051/v1",
        "vllm+grpc://127.0.0.1:99999",
        "trtllm+grpc://",
        "openai+http:///v1",
        "openai+https://user:password@host/v1",
        "openai+https://host/v1?key=7",
        "vllm://127.0.0.1:50051",
        "gpt",
    ],
)
def test_an_address_that_is_none_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"the setting stores\.model is"):
        open_model(StoreSettings(model=url), LanguageModelSettings())


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOREMESH_LANGUAGE_MODEL__API_KEY", "hush-hush")
    loaded = settings.load()
    assert loaded.settings.language_model.api_key == SecretStr("hush-hush")
    assert "hush-hush" not in str(settings.effective(loaded))
    assert "hush-hush" not in repr(loaded.settings)
    with pytest.raises(ConfigurationError, match=r"language_model\.api_key") as caught:
        settings.load(overrides={"language_model": {"api_key": ["hush-hush"]}})
    assert "hush-hush" not in str(caught.value)
