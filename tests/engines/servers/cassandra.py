"""Apache Cassandra on loopback addresses."""

import os
from collections.abc import Mapping
from pathlib import Path

from tests.engines.servers.jars import jars
from tests.engines.servers.process import ServerProcess, accepts

_READY = "Starting listening for CQL clients"
_USERS_READY = "Created default superuser role"
_HEAP = "512m"
_EXPORTS = (
    *("java.base/jdk.internal.misc", "java.base/java.lang.ref", "java.management.rmi/com.sun.jmx.remote.internal.rmi"),
    *("java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server", "java.sql/java.sql"),
    *("jdk.unsupported/sun.misc", "jdk.attach/sun.tools.attach"),
)
_OPENS = (
    *("java.base/java.io", "java.base/java.lang", "java.base/java.lang.module", "java.base/java.lang.reflect"),
    *("java.base/java.nio", "java.base/java.util", "java.base/jdk.internal.loader", "java.base/jdk.internal.math"),
    *("java.base/jdk.internal.module", "java.base/jdk.internal.ref", "java.base/jdk.internal.reflect"),
    *("java.base/jdk.internal.util.jar", "java.base/sun.nio.ch", "jdk.management/com.sun.management.internal"),
)
# Small memtables and caches, few threads, and time-outs that a busy machine can keep.
_CONFIGURATION = """
cluster_name: loremesh
num_tokens: 4
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider: [{{class_name: org.apache.cassandra.locator.SimpleSeedProvider, parameters: [{{seeds: "{seeds}"}}]}}]
listen_address: {address}
rpc_address: {address}
native_transport_port: {port}
storage_port: {storage_port}
ssl_storage_port: {ssl_storage_port}
start_native_transport: true
data_file_directories: [{folder}/data]
commitlog_directory: {folder}/commitlog
hints_directory: {folder}/hints
saved_caches_directory: {folder}/saved_caches
cdc_raw_directory: {folder}/cdc_raw
commitlog_sync: periodic
commitlog_sync_period: 10000ms
commitlog_segment_size: 8MiB
authenticator: {authenticator}
authorizer: {authorizer}
auto_snapshot: false
sstable: {{selected_format: bti}}
memtable: {{configurations: {{trie: {{class_name: TrieMemtable}}, default: {{inherits: trie}}}}}}
storage_compatibility_mode: NONE
memtable_heap_space: 128MiB
memtable_offheap_space: 128MiB
networking_cache_size: 16MiB
file_cache_size: 64MiB
key_cache_size: 8MiB
concurrent_reads: 8
concurrent_writes: 8
read_request_timeout: 20s
range_request_timeout: 30s
write_request_timeout: 20s
request_timeout: 30s
"""
_LOGBACK = """<configuration><appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
<encoder><pattern>%d{HH:mm:ss.SSS} %-5level %logger{0} - %msg%n</pattern></encoder></appender>
<root level="INFO"><appender-ref ref="OUT"/></root></configuration>
"""


class CassandraNode:
    """One node; its data centre is called `datacenter1`.

    Nodes of one cluster have the same ports and seeds, and addresses 127.0.0.1, 127.0.0.2 and so on; they start one after the other.

    Args:
        folder: Its data, which survive it: another node in the same folder goes on with them.
        port: For CQL.
        storage_port: Between nodes; the one above it must be free, too.
        address: Of the node.
        seeds: Address of the first node.
        authentication: Whether users must log in; the first one is `cassandra` with the password `cassandra`.
        seconds: How long it may take until it serves.
        properties: Further settings of the Java machine.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        storage_port: int,
        address: str = "127.0.0.1",
        seeds: str = "127.0.0.1",
        authentication: bool = False,
        seconds: float = 240.0,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.address = address
        self.port = port
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.absolute()
        log = folder / "server.log"
        log.unlink(missing_ok=True)
        (folder / "cassandra.yaml").write_text(
            _CONFIGURATION.format(
                address=address,
                seeds=seeds,
                port=port,
                storage_port=storage_port,
                ssl_storage_port=storage_port + 1,
                folder=folder,
                authenticator="PasswordAuthenticator" if authentication else "AllowAllAuthenticator",
                authorizer="CassandraAuthorizer" if authentication else "AllowAllAuthorizer",
            ),
            encoding="utf-8",
        )
        (folder / "logback.xml").write_text(_LOGBACK, encoding="utf-8")
        library = jars("cassandra")
        settings = {
            "io.netty.tryReflectionSetAccessible": "true",
            "io.netty.allocator.useCacheForAllThreads": "true",
            "io.netty.allocator.maxOrder": "11",
            "cassandra.config": f"file://{folder}/cassandra.yaml",
            "cassandra.storagedir": str(folder),
            "cassandra.logdir": str(folder),
            "logback.configurationFile": str(folder / "logback.xml"),
            "cassandra-foreground": "yes",
            "cassandra.skip_wait_for_gossip_to_settle": "0",
            "cassandra.ring_delay_ms": "5000",
            "java.io.tmpdir": str(folder),
            "jdk.attach.allowAttachSelf": "true",
            **(properties or {}),
        }
        (agent,) = library.glob("jamm-*.jar")
        command = [
            *("nice", "-n", "5", "java", f"-Xms{_HEAP}", f"-Xmx{_HEAP}", f"-XX:MaxDirectMemorySize={_HEAP}"),
            *("-Xss256k", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError"),
            *(f"-javaagent:{agent}", "--add-modules", "jdk.incubator.vector"),
            *(f"--add-exports={package}=ALL-UNNAMED" for package in _EXPORTS),
            *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS),
            *(f"-D{name}={value}" for name, value in settings.items()),
            *("-cp", f"{library}{os.sep}*", "org.apache.cassandra.service.CassandraDaemon"),
        ]
        # The first user is made some seconds after the first start, and is there at every later one.
        wanted = [_READY, _USERS_READY] if authentication and not (folder / "data").exists() else [_READY]

        def ready() -> bool:
            said = log.read_text(encoding="utf-8", errors="replace")
            return all(text in said for text in wanted) and accepts(port, address)

        self._process = ServerProcess(command, folder, ready, seconds=seconds)

    def stop(self) -> None:
        """Ends it after it has written what it holds in memory."""
        self._process.stop()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()
