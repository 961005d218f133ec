"""Finds files and sends them in messages of bounded size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loremesh.v1 import document_pb2
from loremesh.v1 import knowledge_service_pb2 as pb

PART_BYTES = 512 * 1024

MEDIA_TYPES = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "application/xhtml+xml",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".rst": "text/plain",
    ".pdf": "application/pdf",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
}
"""Media type by the ending of a file's name."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file to send: where it is, and the id of its document (the prefix of its lines' uris for JSON lines)."""

    path: Path
    document_id: str
    media_type: str

    @property
    def has_lines(self) -> bool:
        """Whether it holds many documents, one a line."""
        return self.media_type == "application/x-ndjson"

    def uri(self) -> str:
        """Address of the file."""
        return self.path.absolute().as_uri()

    def messages(self) -> Iterator[pb.IngestRequest]:
        """The messages that send the file.

        Raises:
            OSError: It cannot be read.
        """
        with self.path.open("rb") as file:
            size = self.path.stat().st_size
            if self.has_lines:
                for lines in _whole_lines(file):
                    blob = document_pb2.Blob(media_type=self.media_type, data=lines)
                    yield pb.IngestRequest(document=document_pb2.Document(uri=self.uri(), blob=blob))
                return
            blob = document_pb2.Blob(media_type=self.media_type, data=file.read(PART_BYTES), total_size=size)
            document = document_pb2.Document(document_id=self.document_id, uri=self.uri(), blob=blob)
            yield pb.IngestRequest(document=document)
            while part := file.read(PART_BYTES):
                yield pb.IngestRequest(blob_part=pb.BlobPart(data=part))


def _whole_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    batch: list[bytes] = []
    size = 0
    for line in file:
        if batch and size + len(line) > PART_BYTES:
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield b"".join(batch)


def find_files(path: Path) -> list[Path]:
    """A file itself, or the files below a folder that can be parsed, in order; hidden ones and links out of it are passed over."""
    if path.is_file():
        return [path]
    root = path.resolve()
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix.lower() in MEDIA_TYPES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.resolve().is_relative_to(root)
    )


def uploads(path: Path, files: list[Path]) -> list[Upload]:
    """The files to send; a document is named by its path below `path`, or by its name where `path` is the file."""
    return [
        Upload(
            file,
            file.relative_to(path).as_posix() if file != path else file.name,
            # The agent refuses what it cannot parse, and names the types that it can.
            MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream"),
        )
        for file in files
    ]
