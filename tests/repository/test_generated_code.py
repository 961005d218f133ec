"""generated/ is what the protos say, and nothing that our dependencies cannot run."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from buf.validate import validate_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from packaging.requirements import Requirement
from packaging.version import Version
from protovalidate._gen.buf.validate import validate_pb

from tests.repository.repository import GENERATED, ROOT, pyproject
from tools.protoc_gen_loremesh import drop_default_json_names, generate

_STUB_WITH_FOREIGN_COMMENTS = "buf/validate/validate_pb2.pyi"


def _parsed(scratch: Path) -> tuple[FileDescriptorSet, list[str]]:
    """Our protos as protoc reads them. Without Go there is no text of validate.proto: its committed descriptor takes its place."""
    names = sorted(path.relative_to(ROOT / "proto").as_posix() for path in (ROOT / "proto").rglob("*.proto"))
    known = scratch / "known"
    parsed = scratch / "parsed"
    known.write_bytes(FileDescriptorSet(file=[_descriptor()]).SerializeToString())
    packages = importlib.metadata.distribution("googleapis-common-protos").locate_file("")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}", f"--proto_path={packages}"]
    command += [f"--descriptor_set_in={known}", f"--descriptor_set_out={parsed}"]
    command += ["--include_imports", "--include_source_info", *names]
    subprocess.run(command, check=True)
    return FileDescriptorSet.FromString(parsed.read_bytes()), names


def _descriptor() -> FileDescriptorProto:
    return FileDescriptorProto.FromString(validate_pb2.DESCRIPTOR.serialized_pb)


def test_the_committed_python_is_what_the_protos_give(tmp_path: Path) -> None:
    files, names = _parsed(tmp_path)
    expected = generate(files, [*names, "buf/validate/validate.proto"])
    found = {
        path.relative_to(GENERATED).as_posix(): path.read_text()
        for path in GENERATED.rglob("*")
        if path.suffix in {".py", ".pyi"}
    }
    for both in (expected, found):
        both.pop(_STUB_WITH_FOREIGN_COMMENTS)
    stale = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    assert not stale, f"run `make generate` and commit what it writes: {stale}"


def test_the_rules_that_protos_may_use_are_those_that_the_server_enforces() -> None:
    ours = _descriptor()
    enforced = FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    for descriptor in (ours, enforced):
        drop_default_json_names(descriptor)
        descriptor.ClearField("options")  # packages of other languages
    assert ours == enforced


def test_no_generated_file_needs_a_newer_protobuf_than_we_ask_for() -> None:
    requirements = [Requirement(line) for line in pyproject()["project"]["dependencies"]]
    (protobuf,) = (requirement for requirement in requirements if requirement.name == "protobuf")
    (floor,) = (Version(bound.version) for bound in protobuf.specifier if bound.operator == ">=")
    stamps = {
        path.name: Version(stamp[1])
        for path in GENERATED.rglob("*_pb2.py")
        if (stamp := re.search(r"^# Protobuf Python Version: (\S+)$", path.read_text(), re.MULTILINE))
    }
    assert len(stamps) == len(list(GENERATED.rglob("*_pb2.py")))
    assert max(stamps.values()) <= floor


def test_no_generated_file_needs_a_newer_grpcio_than_we_ask_for() -> None:
    requirements = [Requirement(line) for line in pyproject()["project"]["dependencies"]]
    floors = {
        Version(bound.version)
        for requirement in requirements
        if requirement.name.startswith("grpcio")
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    stamps = {
        Version(stamp)
        for path in GENERATED.rglob("*_pb2_grpc.py")
        for stamp in re.findall(r"^GRPC_GENERATED_VERSION = '(.+)'$", path.read_text(), re.MULTILINE)
    }
    assert stamps == floors
    assert len(stamps) == 1


def test_type_checkers_read_the_generated_types() -> None:
    assert (GENERATED / "loremesh" / "py.typed").is_file()
    assert (GENERATED / "buf" / "py.typed").is_file()
