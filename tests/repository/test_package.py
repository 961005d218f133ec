"""The distribution has all that it needs, as a wheel and as this checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import buf.validate.validate_pb2
import loremesh.v1.retriever_service_pb2_grpc

import loremesh_agents
from tests.repository.repository import ROOT

_PACKAGES = ("loremesh_agents", "loremesh.v1.retriever_service_pb2_grpc", "buf.validate.validate_pb2")


def test_this_checkout_is_what_runs() -> None:
    for module in (loremesh_agents, loremesh.v1.retriever_service_pb2_grpc, buf.validate.validate_pb2):
        assert module.__file__ is not None
        assert Path(module.__file__).is_relative_to(ROOT)


def test_the_wheel_has_the_three_packages_with_their_types(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("loremesh-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "loremesh_agents",
        "loremesh",
        "buf",
    }
    for package in ("loremesh_agents", "loremesh", "buf"):
        assert (site / package / "py.typed").is_file()
    program = f"import importlib; print(*(importlib.import_module(name).__file__ for name in {_PACKAGES!r}), sep='\\n')"
    command = [sys.executable, "-c", program]
    found = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(site)}, check=True, capture_output=True, text=True
    )
    assert [line for line in found.stdout.splitlines() if not Path(line).is_relative_to(site)] == []
