"""Neo4j Community with a password, on loopback; Bolt with and without TLS on one port."""

import atexit
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import trustme

from tests.engines.servers.jars import jars
from tests.engines.servers.process import ServerProcess, accepts, free_port

_OPENED = ("java.nio", "java.io", "sun.nio.ch", "java.util.concurrent")
_FLAGS = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]

_CONFIGURATION = """\
server.directories.data={folder}/data
server.directories.logs={folder}/logs
server.default_listen_address=127.0.0.1
server.default_advertised_address=127.0.0.1
server.bolt.enabled=true
server.bolt.listen_address=127.0.0.1:{port}
server.bolt.advertised_address=127.0.0.1:{port}
server.bolt.tls_level=OPTIONAL
server.http.enabled=false
server.https.enabled=false
server.memory.pagecache.size=128m
dbms.security.auth_enabled=true
dbms.ssl.policy.bolt.enabled=true
dbms.ssl.policy.bolt.base_directory={folder}/certificates
dbms.ssl.policy.bolt.client_auth=NONE
dbms.usage_report.enabled=false
# Without this each database takes a file of 256 MiB before it has written anything.
db.tx_log.preallocate=false
"""


class Neo4jServer:
    """A server that keeps its port and its data when it is started again.

    Args:
        folder: Of its data; must exist.
        jvm: Flags for the virtual machine besides.
    """

    user = "neo4j"
    password = "correct horse"
    database = "neo4j"

    def __init__(self, folder: Path, *jvm: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._jvm = jvm
        self._process: ServerProcess | None = None
        (folder / "conf").mkdir()
        (folder / "conf" / "neo4j.conf").write_text(_CONFIGURATION.format(folder=folder, port=self.port))
        certificates = folder / "certificates"
        (certificates / "trusted").mkdir(parents=True)
        (certificates / "revoked").mkdir()
        issued = trustme.CA().issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(certificates / "private.key"))
        (certificates / "public.crt").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        self._run("org.neo4j.server.startup.Neo4jAdminCommand", "dbms", "set-initial-password", self.password)

    def url(self, scheme: str = "bolt") -> str:
        """Where it is."""
        return f"{scheme}://{self.user}@127.0.0.1:{self.port}/{self.database}"

    def start(self) -> None:
        """Returns when it serves."""
        log = self.folder / "logs" / "neo4j.log"
        log.unlink(missing_ok=True)
        command = [
            *("java", "-Xms256m", "-Xmx512m", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError"),
            *("--add-modules=jdk.incubator.vector", "-Dio.netty.tryReflectionSetAccessible=true"),
            *("-Dlog4j2.disable.jmx=true", "-Dfile.encoding=UTF-8", *_FLAGS, *self._jvm),
            *("-cp", f"{jars('neo4j')}/*", "org.neo4j.server.CommunityEntryPoint"),
            *(f"--home-dir={self.folder}", f"--config-dir={self.folder / 'conf'}"),
        ]

        def ready() -> bool:
            return log.exists() and "Started." in log.read_text(encoding="utf-8") and accepts(self.port)

        self._process = ServerProcess(command, self.folder, ready)
        self._process.wait_until_ready()

    def kill(self) -> None:
        """Ends it as a crash would."""
        if self._process is not None:
            self._process.kill()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        if self._process is not None:
            self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Goes on."""
        if self._process is not None:
            self._process.signal(signal.SIGCONT)

    def fill_disk(self) -> None:
        """From now on, until it is started again, its log of transactions cannot grow."""
        assert self._process is not None
        logs = (self.folder / "data" / "transactions" / self.database).glob("neostore.transaction.db.*")
        longest = max(log.stat().st_size for log in logs)
        _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (longest, hard))

    def remove(self) -> None:
        """Ends it and removes its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        environment = {**os.environ, "NEO4J_HOME": str(self.folder), "NEO4J_CONF": str(self.folder / "conf")}
        subprocess.run(
            ["java", *_FLAGS, "-cp", f"{jars('neo4j')}/*", program, *arguments],
            check=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )


@cache
def shared() -> Neo4jServer:
    """The server that the tests of a session share."""
    server = Neo4jServer(Path(tempfile.mkdtemp(prefix="neo4j-")))
    atexit.register(server.remove)
    server.start()
    return server
