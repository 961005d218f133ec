"""Everything that can be set, and where a value came from.

A value comes from the command line, else an environment variable (`LOREMESH_GENERATOR__DEFAULT_BUDGET`), else a file in the folder of secrets
(`LOREMESH_SECRETS`), else the TOML file (`--config` or `LOREMESH_CONFIG`), else it is the default.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from loremesh_agents.coordinator.settings import CoordinatorSettings
from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.retriever.settings import RetrieverSettings
from loremesh_agents.synthesizer.settings import SynthesizerSettings

PREFIX = "LOREMESH_"
CONFIG_VARIABLE = "LOREMESH_CONFIG"
SECRETS_VARIABLE = "LOREMESH_SECRETS"
_OUTSIDE = frozenset({CONFIG_VARIABLE, SECRETS_VARIABLE})
_FOR_TESTS = "LOREMESH_TEST_"


def default_data_folder() -> Path:
    """`loremesh` in the user's data folder."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "loremesh"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StoreSettings(_Group):
    """Backends, as URLs."""

    data: Path = Field(default_factory=default_data_folder)
    """Folder of the embedded stores."""
    graph: str = ""
    """Graph store: `sqlite:///path`, `memory://` where one process serves both knowledge and retriever, `bolt://user@host:port/database` or `neo4j://` of a cluster (with TLS: `bolt+s://`, `neo4j+s://`), `gremlin+ws://user@host:port/g` of JanusGraph (with TLS: `gremlin+wss://`) or `neptune+wss://host:port`. Default: `graph.db` in the data folder."""
    graph_password: SecretStr = SecretStr("")
    """Password of the user in `stores.graph`; best as a file in the folder of secrets."""
    vectors: str = ""
    """Vector index: `faiss:///folder`, `memory://`, `opensearch+https://host:port/prefix` (or `+http`), `cassandra://host:port/keyspace` (or `cassandra+tls`), or `none`. Default: the graph's own where it has one, `vectors` in the data folder, or in memory with the graph."""
    vectors_user: str = ""
    """User of the vector index's server; empty where it asks for none."""
    vectors_password: SecretStr = SecretStr("")
    """Password of that user."""
    text: str = ""
    """Text index: `opensearch+https://host:port/prefix` (or `+http`). Default: within the graph store."""
    text_user: str = ""
    """User of the text index's server; empty where it asks for none."""
    text_password: SecretStr = SecretStr("")
    """Password of that user."""
    ca: Path | None = None
    """PEM file of the authorities that the certificates of the stores' servers come from. Default: those of the machine."""
    embedder: str = "minilm://"
    """Encoder: `minilm://` (the installed package, else a download), `minilm:///folder`, or `none`."""
    previous_embedder: str = ""
    """Encoder of collections that `loremesh collections NAME --reembed` has not yet brought to `stores.embedder`, or that may go back: as there. Empty for none."""
    model: str = "extractive://"
    """Engine that writes answers: `extractive://`, `vllm+grpc://host:port`, `openai+http://host:port/v1` (or `openai+https://`), `trtllm+grpc://host:port`. Several that serve the same model, parted by commas, write as one."""


class LanguageModelSettings(_Group):
    """How the engine that `stores.model` names is used. Nothing of it counts for `extractive://`; times are in seconds."""

    name: str = ""
    """The default model of a server with several; empty for its first."""
    api_key: SecretStr = SecretStr("")
    """Key of an `openai+https` server."""
    tokenizer: Path | None = None
    """Folder of the model's tokenizer (`tokenizer.json` and its neighbours). None: an engine over gRPC sends its own, a server over HTTP counts itself, or its tokens are estimated."""
    context_tokens: int = Field(default=8192, gt=0)
    """Context of the models of a server that does not say."""
    tool_format: Literal["native", "rubra"] = "native"
    """How the model calls tools: `native` as the engine's own interface has it, `rubra` as text, `starttoolcall{"name": ..., "arguments": {...}}endtoolcall`."""
    idle_timeout: float = Field(default=30.0, gt=0)
    """Time for which an engine may be silent in the middle of a call."""


class AddressSettings(_Group):
    """Where the agents listen, and where their peers find them: `host:port` or `unix:/path`."""

    coordinator: str = "127.0.0.1:50051"
    """The coordinator."""
    retriever: str = "127.0.0.1:50052"
    """The retriever."""
    synthesizer: str = "127.0.0.1:50053"
    """The synthesizer."""
    generator: str = "127.0.0.1:50054"
    """The generator."""
    knowledge: str = "127.0.0.1:50055"
    """The knowledge agent."""


class SecuritySettings(_Group):
    """TLS between agents and to clients, for those who run no mesh."""

    mode: Literal["plain", "tls", "mtls", "sidecar"] = "plain"
    """`plain` for loopback, `tls`, `mtls` (who connects must show a certificate), `sidecar` where a mesh does it."""
    certificate: Path | None = None
    """PEM file of our certificate."""
    key: Path | None = None
    """PEM file of its key."""
    ca: Path | None = None
    """PEM file of the authorities that peers' certificates come from."""
    server_name: str = ""
    """Name to look for in servers' certificates where it is not the one dialled."""
    principal_issuers: frozenset[str] = frozenset()
    """Names of the peers that may say on whose behalf they call; empty for all authenticated ones."""


class ServerSettings(_Group):
    """What holds for every agent's server; times in seconds."""

    max_in_flight: int = Field(default=512, gt=0)
    """Calls that an agent serves at once; more are refused with OVERLOADED."""
    idle_timeout: float = Field(default=300.0, gt=0)
    """Time for which a stream may be silent."""
    max_connection_age: float | None = Field(default=None, gt=0)
    """Age at which clients are asked to connect anew, so that new replicas get their share. None: never."""
    drain_delay: float = Field(default=0.0, ge=0)
    """Time between the announcement of the end and the refusal of new calls; what load balancers need to look elsewhere."""
    drain_grace: float = Field(default=20.0, ge=0)
    """Time for the calls in flight at the end."""


class TelemetrySettings(_Group):
    """Logs, metrics and traces."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """What is logged from this level on."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto` is text on a terminal and JSON elsewhere."""
    metrics_host: str = "127.0.0.1"
    """Address of the port that shows metrics."""
    metrics_port: int | None = None
    """Port of `/metrics`; 0 for any free one, None for none."""
    otlp_endpoint: str = ""
    """Where traces go, as in `http://127.0.0.1:4317`. Empty: no tracing."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the queries that are traced."""


class Settings(BaseSettings):
    """All settings. Frozen; unknown names are refused."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_parse_none_str="null",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    stores: StoreSettings = Field(default_factory=StoreSettings)
    language_model: LanguageModelSettings = LanguageModelSettings()
    addresses: AddressSettings = AddressSettings()
    security: SecuritySettings = SecuritySettings()
    server: ServerSettings = ServerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    coordinator: CoordinatorSettings = CoordinatorSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    synthesizer: SynthesizerSettings = SynthesizerSettings()
    generator: GeneratorSettings = GeneratorSettings()
    knowledge: KnowledgeSettings = KnowledgeSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` has merged."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        # `load` merges the others itself: it must know where each value came from.
        return (init_settings,)


class _Variables(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            # What is no JSON is refused by the validation, which knows the name of the setting.
            return value


class _SecretFiles(_Variables, NestedSecretsSettingsSource):
    pass


class LoadedSettings:
    """Settings and the origin of each value.

    Attributes:
        settings: The settings.
        origins: Where a value came from, by its dotted name; what is not there is a default.
    """

    def __init__(self, settings: Settings, origins: Mapping[str, str]) -> None:
        self.settings = settings
        self.origins = origins


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> LoadedSettings:
    """Reads the settings.

    Args:
        config: The TOML file; None for the one that `LOREMESH_CONFIG` names, if any.
        overrides: Nested values that win over all others.

    Raises:
        ConfigurationError: A file cannot be read, a name is unknown, or a value is not allowed; the message names it.
    """
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable not in _OUTSIDE and not variable.startswith(_FOR_TESTS):
            _refuse_unknown_group("environment variable", variable, PREFIX)
    named = os.environ.get(CONFIG_VARIABLE)
    path = config or (Path(named) if named else None)
    origins: dict[str, str] = {}
    merged: dict[str, Any] = {}
    for origin, values in _sources(path, overrides or {}):
        for name, value in _flatten(values):
            if name not in origins:
                origins[name] = origin
                _put(merged, name, value)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, origins)) from error
    return LoadedSettings(settings, origins)


def _sources(path: Path | None, overrides: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "command line", overrides
    yield "environment", _Variables(Settings)()
    secrets = os.environ.get(SECRETS_VARIABLE)
    if secrets:
        if not Path(secrets).is_dir():
            raise ConfigurationError(f"the folder of secrets {secrets} does not exist")
        files = _SecretFiles(_Variables(Settings), secrets_dir=secrets, env_prefix="", secrets_nested_delimiter="__")
        for name in files.env_vars:
            _refuse_unknown_group("file of a secret", name, "")
        yield f"secrets in {secrets}", files()
    if path is not None:
        if not path.is_file():
            raise ConfigurationError(f"the configuration file {path} does not exist")
        try:
            values = TomlConfigSettingsSource(Settings, toml_file=path)()
        except ValueError as error:
            raise ConfigurationError(f"the configuration file {path} is no TOML: {error}") from error
        yield str(path), values


def _refuse_unknown_group(kind: str, name: str, prefix: str) -> None:
    if name.removeprefix(prefix).lower().partition("__")[0] not in Settings.model_fields:
        known = ", ".join(f"{prefix}{field.upper() if prefix else field}" for field in Settings.model_fields)
        raise ConfigurationError(f"the {kind} {name} is unknown; the names begin with {known}")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(cast("Mapping[str, Any]", value), f"{name}.")
        else:
            yield name, value


def _put(target: dict[str, Any], name: str, value: object) -> None:
    *path, last = name.split(".")
    for key in path:
        target = target.setdefault(key, {})
    target[last] = value


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    sentences: list[str] = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        origin = origins.get(name, "")
        where = f" (from {origin})" if origin else ""
        if problem["type"] == "extra_forbidden":
            sentences.append(f"the setting {name}{where} is unknown")
        else:
            rule = problem["msg"]
            value = "of a wrong kind" if name in _SECRETS else repr(problem["input"])
            sentences.append(f"the setting {name}{where} is {value}: {rule[:1].lower()}{rule[1:]}")
    return "; ".join(sentences)


_SECRETS = frozenset(
    f"{group}.{name}"
    for group, model in Settings.model_fields.items()
    for name, field in cast("type[BaseModel]", model.annotation).model_fields.items()
    if field.annotation is SecretStr
)


def effective(loaded: LoadedSettings) -> list[tuple[str, str, str]]:
    """Name, value and origin of every setting; asterisks in place of a secret."""
    values = loaded.settings.model_dump(mode="json")
    rows: list[tuple[str, str, str]] = []
    for name, value in _flatten(values):
        text = json.dumps(sorted(cast("list[str]", value))) if isinstance(value, list) else str(value)
        rows.append((name, "" if value is None else text, loaded.origins.get(name, "default")))
    return rows
