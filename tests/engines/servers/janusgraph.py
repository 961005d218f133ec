"""JanusGraph Server, on storage of three kinds."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from tests.engines.servers.cassandra import DATACENTER, Cassandra
from tests.engines.servers.gremlin_server import answers
from tests.engines.servers.jars import jars
from tests.engines.servers.java import java
from tests.engines.servers.process import ServerProcess, free_port

_SERVER = """\
host: 127.0.0.1
port: {port}
evaluationTimeout: 30000
channelizer: org.apache.tinkerpop.gremlin.server.channel.WsAndHttpChannelizer
graphManager: org.janusgraph.graphdb.management.JanusGraphManager
graphs: {{ graph: {folder}/graph.properties }}
gremlinPool: 4
scriptEngines: {{
  gremlin-groovy: {{
    plugins: {{
      org.janusgraph.graphdb.tinkerpop.plugin.JanusGraphGremlinPlugin: {{}},
      org.apache.tinkerpop.gremlin.server.jsr223.GremlinServerGremlinPlugin: {{}},
      org.apache.tinkerpop.gremlin.tinkergraph.jsr223.TinkerGraphGremlinPlugin: {{}},
      org.apache.tinkerpop.gremlin.jsr223.ScriptFileGremlinPlugin: {{files: [{folder}/init.groovy]}}}}}}}}
serializers:
  - {{ className: org.apache.tinkerpop.gremlin.util.ser.GraphBinaryMessageSerializerV1, config: {{ ioRegistries: [org.janusgraph.graphdb.tinkerpop.JanusGraphIoRegistry] }}}}
  - {{ className: org.apache.tinkerpop.gremlin.util.ser.GraphSONMessageSerializerV3, config: {{ ioRegistries: [org.janusgraph.graphdb.tinkerpop.JanusGraphIoRegistry] }}}}
metrics: {{ jmxReporter: {{ enabled: false }}}}
strictTransactionManagement: false
idleConnectionTimeout: 0
keepAliveInterval: 0
maxContentLength: {frame}
resultIterationBatchSize: 64
"""

_SOURCE = "def globals = [:]\nglobals << [g : traversal().withEmbedded(graph)]\n"

_GAVE_UP = b"was unable to start"
_ATTEMPTS = 12
"""Each gets some tables further."""

Storage = Literal["inmemory", "berkeleyje", "cql"]


class JanusGraph:
    """A server.

    Args:
        folder: Where it keeps everything.
        storage: Its kind.
        cassandra: The nodes for `cql`.
        heap: Of the JVM.
        frame: Largest request that it takes, in bytes.
        replication: Copies on Cassandra.
        port: 0 for a free one.
        keyspace: On Cassandra.
        user: Who logs in to Cassandra, whose password is the same; empty for nobody.
    """

    def __init__(
        self,
        folder: Path,
        storage: Storage = "inmemory",
        *,
        cassandra: Sequence[Cassandra] = (),
        heap: str = "512m",
        frame: int = 1 << 24,
        replication: int = 1,
        port: int = 0,
        keyspace: str = "janusgraph",
        user: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._heap = heap
        self.cassandra = tuple(cassandra)
        self.port = port or free_port()
        settings = [
            "gremlin.graph=org.janusgraph.core.JanusGraphFactory",
            f"storage.backend={storage}",
            "schema.default=none",
            "query.batch.enabled=true",
            "query.force-index=true",
        ]
        if storage == "berkeleyje":
            settings.append(f"storage.directory={folder}/berkeley")
        else:
            # BerkeleyDB refuses ids that are not its own.
            settings += ["graph.set-vertex-id=true", "graph.allow-custom-vid-types=true"]
        if storage == "cql":
            assert cassandra, "storage cql needs a node of Cassandra"
            settings += [
                f"storage.hostname={','.join(node.address for node in cassandra)}",
                f"storage.port={cassandra[0].port}",
                f"storage.cql.keyspace={keyspace}",
                f"storage.cql.local-datacenter={DATACENTER}",
                f"storage.cql.replication-factor={replication}",
                "storage.cql.read-consistency-level=LOCAL_QUORUM",
                "storage.cql.write-consistency-level=LOCAL_QUORUM",
                "storage.cql.speculative-retry=100ms",
            ]
        if user:
            settings += [f"storage.username={user}", f"storage.password={user}"]
        if replication > 1:
            # A lock must be written within it, at quorum and on a busy machine.
            settings.append("storage.lock.wait-time=300")
        (folder / "graph.properties").write_text("\n".join(settings) + "\n", encoding="utf-8")
        (folder / "init.groovy").write_text(_SOURCE, encoding="utf-8")
        server = _SERVER.format(port=self.port, folder=folder, frame=frame)
        (folder / "server.yaml").write_text(server, encoding="utf-8")
        self._start()

    @property
    def url(self) -> str:
        """As in the settings."""
        return f"gremlin+ws://127.0.0.1:{self.port}/g"

    def _start(self) -> None:
        command = java(
            jars("janusgraph"),
            "org.janusgraph.graphdb.server.JanusGraphServer",
            str(self._folder / "server.yaml"),
            heap=self._heap,
            options=("-Xms128m",),
        )
        log = self._folder / "server.log"

        def ready() -> bool:
            # Its process would go on.
            if _GAVE_UP in log.read_bytes()[before:]:
                raise RuntimeError(f"JanusGraph in {self._folder} does not serve")
            return answers(self.port)

        for attempt in range(_ATTEMPTS):
            before = log.stat().st_size if log.exists() else 0
            try:
                self._process = ServerProcess(command, self._folder, ready)
                self._process.wait_until_ready()
            except RuntimeError:
                # One of several nodes of Cassandra may not know yet of a table that another has just made.
                if len(self.cassandra) < 2 or attempt + 1 == _ATTEMPTS:
                    raise
            else:
                return

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()

    def restart(self) -> None:
        """Starts it again on what it has stored."""
        self._start()

    def stop(self) -> None:
        """Ends it."""
        self._process.stop()


@cache
def shared(storage: Storage) -> JanusGraph:
    """The server of a kind of storage that the tests of a session share."""
    folder = Path(tempfile.mkdtemp(prefix=f"janusgraph-{storage}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    nodes = [Cassandra(folder / "cassandra")] if storage == "cql" else []
    for node in nodes:
        atexit.register(node.kill)
    server = JanusGraph(folder / "server", storage, cassandra=nodes)
    atexit.register(server.kill)
    return server
