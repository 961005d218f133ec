"""Generates our Python code: the plugin of buf.gen.yaml, and what `tests/repository` compares with.

As a plugin it reads a CodeGeneratorRequest from standard input. The generators themselves (messages, services, and stubs for both) are
those of grpcio-tools and mypy-protobuf, as pinned in constraints.txt.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

OUTPUTS = ("python", "grpc_python", "mypy", "mypy_grpc")


def generate(files: FileDescriptorSet, names: Sequence[str]) -> dict[str, str]:
    """The generated files by their paths.

    Args:
        files: The protos with all that they import, in the order of their dependencies.
        names: Those of them to generate code for.

    Raises:
        RuntimeError: protoc refused; the message is its own.
    """
    for file in files.file:
        drop_default_json_names(file)
    with_services = {file.name for file in files.file if file.service}
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        out.mkdir()
        descriptors = Path(folder, "descriptors")
        descriptors.write_bytes(files.SerializeToString())
        for output in OUTPUTS:
            todo = [name for name in names if "grpc" not in output or name in with_services]
            plugin = Path(sys.executable).with_name(f"protoc-gen-{output}")
            command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={descriptors}"]
            if plugin.exists():
                command.append(f"--plugin=protoc-gen-{output}={plugin}")
            result = subprocess.run(
                [*command, f"--{output}_out={out}", *todo], capture_output=True, text=True, check=False
            )
            if result.returncode:
                raise RuntimeError(result.stderr)
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            found[path.relative_to(out).as_posix()] = path.read_text()
    return found


def drop_default_json_names(scope: FileDescriptorProto | DescriptorProto) -> None:
    """Takes out what buf has filled in: generated code would carry every field's name twice."""
    fields = [*scope.extension, *(scope.field if isinstance(scope, DescriptorProto) else ())]
    for field in fields:
        first, *others = field.name.split("_")
        if field.json_name == first + "".join(other[:1].upper() + other[1:] for other in others):
            field.ClearField("json_name")
    for message in scope.nested_type if isinstance(scope, DescriptorProto) else scope.message_type:
        drop_default_json_names(message)


def main() -> None:
    """Serves one request of buf."""
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    # google.* comes with packages that protobuf code of everybody shares.
    names = [name for name in request.file_to_generate if not name.startswith("google/")]
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    try:
        found = generate(FileDescriptorSet(file=request.proto_file), names)
    except RuntimeError as error:
        response.error = str(error)
    else:
        for package in ("loremesh", "buf"):
            found[f"{package}/py.typed"] = ""
        for name, content in sorted(found.items()):
            response.file.add(name=name, content=content)
    sys.stdout.buffer.write(response.SerializeToString())


if __name__ == "__main__":
    main()
