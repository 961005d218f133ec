"""Apache Gremlin Server with TinkerGraph: what stands in for Amazon Neptune, which cannot be had outside its cloud.

As Neptune it takes strings as ids of vertices and keeps sets by default; scripts in the language that Neptune speaks are chosen by the request.
"""

import atexit
import shutil
import tempfile
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from tests.engines.servers.jars import jars
from tests.engines.servers.java import java
from tests.engines.servers.process import ServerProcess, free_port

_GRAPH = """\
gremlin.graph=org.apache.tinkerpop.gremlin.tinkergraph.structure.TinkerTransactionGraph
gremlin.tinkergraph.vertexIdManager=ANY
gremlin.tinkergraph.edgeIdManager=ANY
gremlin.tinkergraph.vertexPropertyIdManager=LONG
gremlin.tinkergraph.defaultVertexPropertyCardinality=set
"""

_SOURCE = "def globals = [:]\nglobals << [g : traversal().withEmbedded(graph)]\n"

_SERVER = """\
host: 127.0.0.1
port: {port}
evaluationTimeout: 30000
channelizer: org.apache.tinkerpop.gremlin.server.channel.WsAndHttpChannelizer
graphs: {{ graph: {folder}/graph.properties }}
gremlinPool: 4
scriptEngines: {{
  gremlin-lang: {{}},
  gremlin-groovy: {{
    plugins: {{
      org.apache.tinkerpop.gremlin.server.jsr223.GremlinServerGremlinPlugin: {{}},
      org.apache.tinkerpop.gremlin.tinkergraph.jsr223.TinkerGraphGremlinPlugin: {{}},
      org.apache.tinkerpop.gremlin.jsr223.ScriptFileGremlinPlugin: {{files: [{folder}/init.groovy]}}}}}}}}
serializers:
  - {{ className: org.apache.tinkerpop.gremlin.util.ser.GraphBinaryMessageSerializerV1, config: {{ ioRegistries: [org.apache.tinkerpop.gremlin.tinkergraph.structure.TinkerIoRegistryV3] }}}}
  - {{ className: org.apache.tinkerpop.gremlin.util.ser.GraphSONMessageSerializerV3, config: {{ ioRegistries: [org.apache.tinkerpop.gremlin.tinkergraph.structure.TinkerIoRegistryV3] }}}}
metrics: {{ jmxReporter: {{ enabled: false }}}}
strictTransactionManagement: false
idleConnectionTimeout: 0
keepAliveInterval: 0
maxContentLength: 16777216
resultIterationBatchSize: 64
"""


def answers(port: int) -> bool:
    """Whether a server evaluates: its port is open before its graph is there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/?gremlin=g.inject(1)", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


class GremlinServer:
    """A server, without TLS: the proxy that checks signatures has it.

    Args:
        folder: Where it keeps everything.
        heap: Of the JVM.
    """

    def __init__(self, folder: Path, *, heap: str = "1g") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._heap = heap
        self.port = free_port()
        (folder / "graph.properties").write_text(_GRAPH, encoding="utf-8")
        (folder / "init.groovy").write_text(_SOURCE, encoding="utf-8")
        (folder / "server.yaml").write_text(_SERVER.format(port=self.port, folder=folder), encoding="utf-8")
        self._process = self._start()
        self._process.wait_until_ready()

    def _start(self) -> ServerProcess:
        command = java(
            jars("gremlin-server"),
            "org.apache.tinkerpop.gremlin.server.GremlinServer",
            str(self._folder / "server.yaml"),
            heap=self._heap,
            options=("-Xms128m",),
        )
        return ServerProcess(command, self._folder, lambda: answers(self.port))

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()

    def stop(self) -> None:
        """Ends it."""
        self._process.stop()


@cache
def shared() -> GremlinServer:
    """The server that the tests of a session share."""
    folder = Path(tempfile.mkdtemp(prefix="gremlin-server-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = GremlinServer(folder)
    atexit.register(server.kill)
    return server
