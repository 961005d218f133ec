"""Sends files to a knowledge agent and reports what became of them."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import grpc
from google.protobuf import json_format
from loremesh.v1 import knowledge_service_pb2 as pb
from loremesh.v1 import knowledge_service_pb2_grpc as pb_grpc

from loremesh_agents.cli.turns import in_turn
from loremesh_agents.cli.uploads import Upload
from loremesh_agents.domain.errors import NotFound
from loremesh_agents.runtime.channel import Peer

_DELETED_TOGETHER = 500


@dataclass(slots=True)
class Report:
    """What became of the files.

    Attributes:
        seen: Ids of all documents that were sent.
        failed_files: Files of which a document failed.
        unread: Files that could not be read here.
    """

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: int = 0
    revision: int = 0
    seen: set[str] = field(default_factory=set[str])
    failed_files: dict[Path, None] = field(default_factory=dict[Path, None])
    unread: int = 0


async def ingest(
    channel: grpc.aio.Channel, peer: Peer, start: pb.IngestStart, files: Sequence[Upload], *, as_json: bool
) -> Report:
    """Sends files; prints a progress bar on a terminal, failures, and with `as_json` every result."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    report = Report()
    sent: dict[int, Upload] = {}

    async def requests() -> AsyncGenerator[pb.IngestRequest]:
        yield pb.IngestRequest(start=start)
        position = 0
        for upload in files:
            try:
                messages = iter(upload.messages())
                while (message := await asyncio.to_thread(next, messages, None)) is not None:
                    if message.HasField("document"):
                        sent[position] = upload
                        position += 1
                    yield message
            except OSError as error:
                _unread(report, upload, error)
            progress.advance(bar)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stub: pb_grpc.KnowledgeServiceAsyncStub = pb_grpc.KnowledgeServiceStub(channel)
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=as_json or not console.is_terminal) as progress:
        bar = progress.add_task("files", total=len(files))
        async with peer.duplex(stub.Ingest, requests(), None) as responses:
            async for response in responses:
                if response.HasField("result"):
                    _count(report, response.result, sent[response.result.position], as_json=as_json)
    return report


def _unread(report: Report, upload: Upload, error: OSError) -> None:
    report.failed += 1
    report.unread += 1
    report.failed_files.setdefault(upload.path)
    click.secho(f"{upload.path}: it cannot be read: {error.strerror}", fg="red", err=True)


def _count(report: Report, result: pb.DocumentResult, upload: Upload, *, as_json: bool) -> None:
    report.seen.add(result.document_id)
    report.revision = max(report.revision, result.revision.revision)
    if as_json:
        click.echo(json.dumps({"file": str(upload.path), **json_format.MessageToDict(result)}, ensure_ascii=False))
    match result.outcome:
        case pb.DOCUMENT_OUTCOME_CREATED:
            report.created += 1
        case pb.DOCUMENT_OUTCOME_UPDATED:
            report.updated += 1
        case pb.DOCUMENT_OUTCOME_UNCHANGED:
            report.unchanged += 1
        case _:
            report.failed += 1
            report.failed_files.setdefault(upload.path)
            if not as_json:
                click.secho(f"{upload.path}: {result.error.message}", fg="red", err=True)


async def delete_vanished(
    channel: grpc.aio.Channel, peer: Peer, collection: str, roots: Sequence[Path], seen: set[str]
) -> int:
    """Deletes the documents whose files were below the roots and were not sent; gives how many."""
    prefixes = tuple(f"{root.absolute().as_uri()}/" if root.is_dir() else root.absolute().as_uri() for root in roots)
    stub: pb_grpc.KnowledgeServiceAsyncStub = pb_grpc.KnowledgeServiceStub(channel)
    vanished: list[str] = []
    try:
        async with peer.stream(stub.ReadChanges, pb.ReadChangesRequest(collection=collection), None) as changes:
            async for change in changes:
                document = change.document
                if change.kind != pb.CHANGE_KIND_WRITTEN or document.document_id in seen:
                    continue
                if document.uri.startswith(prefixes):
                    vanished.append(document.document_id)
    except NotFound:
        return 0
    deleted = 0
    for start in range(0, len(vanished), _DELETED_TOGETHER):
        request = pb.DeleteDocumentsRequest(
            collection=collection, document_ids=vanished[start : start + _DELETED_TOGETHER]
        )
        response = await in_turn(partial(peer.unary, stub.DeleteDocuments, request))
        deleted += response.deleted_count
    return deleted
