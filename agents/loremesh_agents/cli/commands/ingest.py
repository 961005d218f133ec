"""`loremesh ingest`."""

import asyncio
from pathlib import Path

import click
from loremesh.v1 import collection_pb2
from loremesh.v1 import knowledge_service_pb2 as pb

from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.exits import OK, PARTLY
from loremesh_agents.cli.ingestion import Report, delete_vanished, ingest
from loremesh_agents.cli.session import connected, plain_errors, read_settings, run, settings_options
from loremesh_agents.cli.uploads import Upload, find_files, uploads


@click.command("ingest")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("-c", "--collection", required=True, help="Collection to read into; made where it does not exist.")
@click.option(
    "--reader-statistics",
    is_flag=True,
    help="Make the collection so that documents change nothing for those who may not read them, scores included; one that is there"
    " must have been made so.",
)
@click.option("--sync", is_flag=True, help="Also delete documents of these folders whose files have vanished.")
@click.option(
    "--retry",
    type=click.Path(path_type=Path),
    help="Read only those files of PATH that an earlier run has listed as failed.",
)
@click.option("--failed", type=click.Path(path_type=Path), help="File to list failed files in, for --retry.")
@click.option("--json", "as_json", is_flag=True, help="Print one result a line, as JSON.")
@click.option("--address", help="A knowledge agent, as in 127.0.0.1:50055. Default: serve it here.")
@settings_options
def command(
    paths: tuple[Path, ...],
    collection: str,
    reader_statistics: bool,
    sync: bool,
    retry: Path | None,
    failed: Path | None,
    as_json: bool,
    address: str | None,
    config: Path | None,
    data: Path | None,
) -> int:
    """Read files and folders (Markdown, HTML, text, JSON lines, PDF) into a collection.

    A document is named by its path below PATH; a line of a JSON lines file by its `_id`. What is there already in the same
    content is not read again.
    """
    if sync and retry is not None:
        raise click.UsageError("--sync and --retry do not go together: a list of failed files is not a whole folder.")
    for path in paths:
        if not path.exists():
            raise click.UsageError(f"The path {path} does not exist.")
    if failed is not None and not failed.absolute().parent.is_dir():
        raise click.UsageError(f"The folder of {failed} does not exist.")
    with plain_errors():
        settings = read_settings(config, data).settings
    found = [upload for path in paths for upload in uploads(path, find_files(path))]
    if retry is not None:
        found = _listed(retry, found)
    # Without the switch an existing collection keeps what it has.
    options = collection_pb2.CollectionOptions(reader_statistics=True if reader_statistics else None)
    start = pb.IngestStart(collection=collection, options=options)
    return run(_ingest(found, paths, start, settings, address, failed, sync=sync, as_json=as_json))


async def _ingest(
    found: list[Upload],
    paths: tuple[Path, ...],
    start: pb.IngestStart,
    settings: Settings,
    address: str | None,
    failed: Path | None,
    *,
    sync: bool,
    as_json: bool,
) -> int:
    async with connected("knowledge", address, settings, ("knowledge",)) as (channel, peer):
        report: Report = await ingest(channel, peer, start, found, as_json=as_json)
        deleted = 0
        if sync and not report.unread:
            deleted = await delete_vanished(channel, peer, start.collection, paths, report.seen)
    if failed is not None:
        await asyncio.to_thread(failed.write_text, "".join(f"{path}\n" for path in report.failed_files))
    if not as_json:
        click.echo(
            f"{report.created} new, {report.updated} changed, {report.unchanged} unchanged, {report.failed} failed"
            + (f", {deleted} deleted" if sync else "")
            + (f"; {start.collection} is at revision {report.revision}" if report.revision else "")
        )
        if sync and report.unread:
            click.secho(
                "Nothing was deleted: some files could not be read, and their documents must not go.", fg="yellow"
            )
    return PARTLY if report.failed else OK


def _listed(list_of_files: Path, found: list[Upload]) -> list[Upload]:
    """Those that a list names; files of it that have vanished are passed over."""
    if not list_of_files.is_file():
        raise click.UsageError(f"The list {list_of_files} does not exist.")
    listed = {Path(line).absolute() for line in list_of_files.read_text().splitlines() if line}
    elsewhere = listed - {upload.path.absolute() for upload in found}
    for path in sorted(elsewhere):
        if path.exists():
            raise click.UsageError(f"{list_of_files} lists {path}, which is not below any PATH named here.")
    return [upload for upload in found if upload.path.absolute() in listed]
