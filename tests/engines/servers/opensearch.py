"""OpenSearch with its k-NN plugin (the Lucene engine alone) on loopback."""

import json
import os
import random
import signal
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from tests.engines.servers.jars import jars
from tests.engines.servers.process import ServerProcess, accepts

_PORTS = range(9201, 9299)
"""The runner that starts it takes no others."""
_PLUGIN = "org.opensearch.knn.plugin.KNNPlugin"


def _library() -> Path:
    folder = jars("opensearch")
    for plugin in folder.glob("opensearch-knn-*.zip"):
        with zipfile.ZipFile(plugin) as archive:
            for name in archive.namelist():
                if name.endswith(".jar") and not (folder / name).exists():
                    part = folder / f"{name}.{os.getpid()}.part"
                    part.write_bytes(archive.read(name))
                    part.replace(folder / name)
    return folder


class OpenSearchNode:
    """One node, without users and without TLS.

    Args:
        folder: Its data, which survive it: another node in the same folder goes on with them.
        port: For HTTP; None for any that is free.
        seconds: How long it may take until it serves.
    """

    def __init__(self, folder: Path, *, port: int | None = None, seconds: float = 180.0) -> None:
        self.port = port or next(free for free in random.sample(_PORTS, len(_PORTS)) if not accepts(free))
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.absolute()
        command = [
            *("nice", "-n", "5", "java", "-Xms256m", "-Xmx768m", f"-Djava.io.tmpdir={folder}"),
            *("--add-opens=java.base/java.lang=ALL-UNNAMED", "-cp", f"{_library()}{os.sep}*"),
            *("org.codelibs.opensearch.runner.OpenSearchRunner", "-basePath", str(folder / "node")),
            # The runner adds the node's number, 1, to the port.
            *(
                "-clusterName",
                f"loremesh-{self.port}",  # nodes of one machine and one name would find one another
                "-numOfNode",
                "1",
                "-baseHttpPort",
                str(self.port - 1),
                "-pluginTypes",
                _PLUGIN,
            ),
        ]
        self._process = ServerProcess(command, folder, self._serves, seconds=seconds)
        self._process.wait_until_ready()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: object = None, *, seconds: float = 30.0) -> Any:
        """Asks it something, as its operator would."""
        asked = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=seconds) as answer:
            return json.load(answer)

    def _serves(self) -> bool:
        try:
            self.request("GET", "/_cluster/health?wait_for_status=yellow&timeout=3s", seconds=5)
        except (OSError, urllib.error.URLError, ValueError):
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to it."""
        self._process.signal(number)

    def stop(self) -> None:
        """Ends it."""
        self._process.stop()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()
