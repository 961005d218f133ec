"""Nodes of Apache Cassandra."""

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import trustme
from cassandra import ConsistencyLevel
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, Session
from cassandra.policies import WhiteListRoundRobinPolicy
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

from tests.engines.servers.jars import jars
from tests.engines.servers.java import java
from tests.engines.servers.process import ServerProcess, accepts, free_port

DATACENTER = "datacenter1"
"""What SimpleSnitch calls the only one."""

_SERVES = b"Starting listening for CQL clients"
_SECONDS_TO_AGREE = 60
_USERS_READY = b"Created default superuser role"
_CONFIGURATION = """\
cluster_name: loremesh
num_tokens: 4
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider: [{{class_name: org.apache.cassandra.locator.SimpleSeedProvider, parameters: [{{seeds: "{seed}"}}]}}]
listen_address: {address}
rpc_address: {address}
native_transport_port: {port}
storage_port: {storage_port}
ssl_storage_port: {tls_port}
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
# Small, and patient on a busy machine.
memtable_heap_space: 128MiB
memtable_offheap_space: 128MiB
networking_cache_size: 16MiB
file_cache_size: 64MiB
key_cache_size: 8MiB
concurrent_reads: 8
concurrent_writes: 8
hinted_handoff_enabled: {hints}
"""
_PATIENT = """\
read_request_timeout: 20s
range_request_timeout: 30s
write_request_timeout: 20s
request_timeout: 30s
"""

_TLS = """\
client_encryption_options: {{enabled: true, optional: false, keystore: {keystore}, keystore_password: {password}, store_type: PKCS12}}
"""
_KEYSTORE_PASSWORD = "keystore"
_FULL = """\
data_disk_usage_percentage_fail_threshold: 1
data_disk_usage_max_disk_size: 10KiB
"""

_LOGS = """\
<configuration><appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
<encoder><pattern>%d %-5level %logger{0} - %msg%n</pattern></encoder></appender>
<root level="INFO"><appender-ref ref="OUT"/></root></configuration>
"""

_EXPORTED = (
    *("java.base/java.lang.ref", "java.base/jdk.internal.misc", "java.management.rmi/com.sun.jmx.remote.internal.rmi"),
    *("java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server", "java.sql/java.sql", "jdk.attach/sun.tools.attach"),
    "jdk.unsupported/sun.misc",
)


class Cassandra:
    """A node; with others of the same ports and seed it makes a cluster.

    Args:
        folder: Where it keeps everything.
        address: On loopback, its own.
        seed: Addresses, parted by commas, of nodes that a node asks when it starts; a node that is among them joins without asking for data.
        port: Of CQL, 0 for a free one; the same on all nodes of a cluster.
        storage_port: Between nodes, 0 for a free one; the same on all nodes of a cluster.
        heap: Of the JVM.
        authentication: Whether users must log in; the first one is `cassandra` with the password `cassandra`.
        patient: Whether requests between nodes may take longer than by default, as on a busy machine.
        hints: Whether writes for a node that is away are kept for it.
        certificate: Of the server, for TLS; None for none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        address: str = "127.0.0.1",
        seed: str = "127.0.0.1",
        port: int = 0,
        storage_port: int = 0,
        heap: str = "512m",
        authentication: bool = False,
        patient: bool = True,
        hints: bool = True,
        certificate: trustme.LeafCert | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._heap = heap
        self.address = address
        self.port = port or free_port(address)
        self.storage_port = storage_port or free_port(address)
        configuration = _CONFIGURATION.format(
            seed=seed,
            address=address,
            port=self.port,
            storage_port=self.storage_port,
            tls_port=free_port(address),
            folder=folder,
            authenticator="PasswordAuthenticator" if authentication else "AllowAllAuthenticator",
            authorizer="CassandraAuthorizer" if authentication else "AllowAllAuthorizer",
            hints=str(hints).lower(),
        )
        configuration += _PATIENT if patient else ""
        if certificate is not None:
            (folder / "keystore.p12").write_bytes(_keystore(certificate))
            configuration += _TLS.format(keystore=folder / "keystore.p12", password=_KEYSTORE_PASSWORD)
        # The first user is made some seconds after the first start, and is there at every later one.
        self._awaited = [_SERVES, _USERS_READY] if authentication else [_SERVES]
        (folder / "cassandra.yaml").write_text(configuration, encoding="utf-8")
        (folder / "logback.xml").write_text(_LOGS, encoding="utf-8")
        self._process = self._start()
        self._process.wait_until_ready()

    def _start(self) -> ServerProcess:
        libraries = jars("cassandra")
        options = (
            *("-XX:+UseG1GC", f"-XX:MaxDirectMemorySize={self._heap}", "-Xss256k", "-XX:+ExitOnOutOfMemoryError"),
            f"-javaagent:{next(libraries.glob('jamm-*.jar'))}",
            *("--add-modules", "jdk.incubator.vector", "-Djdk.attach.allowAttachSelf=true"),
            *(f"--add-exports={package}=ALL-UNNAMED" for package in _EXPORTED),
            *("-Dio.netty.tryReflectionSetAccessible=true", "-Dio.netty.allocator.useCacheForAllThreads=true"),
            *(f"-Dcassandra.config=file://{self._folder}/cassandra.yaml", f"-Dcassandra.storagedir={self._folder}"),
            *(f"-Dcassandra.logdir={self._folder}", f"-Djava.io.tmpdir={self._folder}"),
            f"-Dlogback.configurationFile={self._folder}/logback.xml",
            "-Dcassandra.disk_usage.monitor_interval_ms=1000",
            *("-Dcassandra-foreground=yes", "-Dcassandra.ring_delay_ms=5000"),
        )
        log = self._folder / "server.log"
        awaited, self._awaited = self._awaited, [_SERVES]
        before = log.stat().st_size if log.exists() else 0

        def ready() -> bool:
            with log.open("rb") as output:
                output.seek(before)
                said = output.read()
            return all(text in said for text in awaited) and accepts(self.port, self.address)

        command = java(libraries, "org.apache.cassandra.service.CassandraDaemon", heap=self._heap, options=options)
        return ServerProcess(command, self._folder, ready)

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()

    def restart(self, *, full: bool = False) -> None:
        """Starts it again on what it has stored.

        Args:
            full: Whether its disk counts as full, for all but superusers, whatever is on it. Two seconds later it does.
        """
        configuration = self._folder / "cassandra.yaml"
        lines = configuration.read_text(encoding="utf-8").replace(_FULL, "")
        configuration.write_text(lines + (_FULL if full else ""), encoding="utf-8")
        self._process = self._start()
        self._process.wait_until_ready()

    def stop(self) -> None:
        """Ends it."""
        self._process.stop()


def cluster(folder: Path, *, heap: str = "512m") -> tuple[Cassandra, Cassandra, Cassandra]:
    """Three nodes with the timeouts of a fresh installation, started side by side, that keep no hints for one another."""
    addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    port, storage_port = free_port(), free_port()

    def start(address: str) -> Cassandra:
        return Cassandra(
            folder / address,
            address=address,
            seed=",".join(addresses),
            port=port,
            storage_port=storage_port,
            heap=heap,
            patient=False,
            hints=False,
        )

    with ThreadPoolExecutor(len(addresses)) as threads:
        starting = [threads.submit(start, address) for address in addresses]
    try:
        first, second, third = (node.result() for node in starting)
    except BaseException:
        for node in starting:
            if node.exception() is None:
                node.result().kill()
        raise
    nodes = (first, second, third)
    end = time.monotonic() + _SECONDS_TO_AGREE
    while not all(_knows(node, len(nodes) - 1) for node in nodes):
        if time.monotonic() > end:
            for node in nodes:
                node.kill()
            raise RuntimeError(f"the nodes of Cassandra in {folder} do not find one another")
        time.sleep(0.5)  # they say nowhere that they have
    return nodes


@contextmanager
def asking(node: Cassandra) -> Generator[Session]:
    """A session with one node alone, which answers by itself where it can."""
    profile = ExecutionProfile(
        load_balancing_policy=WhiteListRoundRobinPolicy([node.address]),
        consistency_level=ConsistencyLevel.ONE,
        request_timeout=30,
    )
    profiles = {EXEC_PROFILE_DEFAULT: profile}
    with Cluster([node.address], port=node.port, protocol_version=5, execution_profiles=profiles) as cluster_:
        yield cluster_.connect()


def _keystore(certificate: trustme.LeafCert) -> bytes:
    """A certificate and its key, as Java takes them."""
    first, *chain = (x509.load_pem_x509_certificate(part.bytes()) for part in certificate.cert_chain_pems)
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    assert isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey)
    encryption = BestAvailableEncryption(_KEYSTORE_PASSWORD.encode())
    return serialize_key_and_certificates(b"server", key, first, chain, encryption)


def _knows(node: Cassandra, others: int) -> bool:
    """Whether a node knows so many others, and all have the same schema."""
    with asking(node) as session:
        (own,) = session.execute("SELECT schema_version FROM system.local")
        known = [row.schema_version for row in session.execute("SELECT schema_version FROM system.peers_v2")]
    return known == others * [own.schema_version]
