"""`loremesh graph`."""

import json
from contextlib import AsyncExitStack
from pathlib import Path

import click

from loremesh_agents.bootstrap.graph_care import GraphReport, SchemaReport, graph_report, migrate_schema
from loremesh_agents.bootstrap.graph_shape import PARTITIONS
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.bootstrap.stores import Stores
from loremesh_agents.cli.session import plain_errors, read_settings, run, settings_options
from loremesh_agents.domain.deadline import Deadline

_SECONDS = 600.0


@click.group("graph")
def command() -> None:
    """Look after the graph store that the settings name."""


@command.command("migrate")
@click.option("--plan", is_flag=True, help="Only print what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options
def migrate(plan: bool, as_json: bool, config: Path | None, data: Path | None) -> int:
    """Bring the store's schema up to this build's. It may be repeated, and agents may go on meanwhile."""
    with plain_errors():
        settings = read_settings(config, data).settings
    return run(_migrate(settings, plan=plan, as_json=as_json))


async def _migrate(settings: Settings, *, plan: bool, as_json: bool) -> int:
    async with AsyncExitStack() as stack:
        graph = Stores(settings, stack).graph
        report = await migrate_schema(graph, plan=plan, deadline=Deadline.after(_SECONDS))
    if as_json:
        fields = {"found": report.found, "needed": report.needed}
        pending = [{"version": version, "what": what} for version, what in report.pending.items()]
        click.echo(json.dumps({**fields, "pending": pending, "made": list(report.made)}))
    else:
        _print_schema(report, plan=plan)
    return 0


def _print_schema(report: SchemaReport, *, plan: bool) -> None:
    if report.needed is None:
        click.echo("This graph store brings its schema up to date itself when it is opened; there is nothing to do.")
    elif not report.pending:
        click.echo(f"The graph schema is {report.found}, as this build needs it; there is nothing to do.")
    else:
        for version, what in report.pending.items():
            click.echo(f"{'would be made' if plan else 'made'}: {version}, {what}")


@command.command("stats")
@click.option("--top", default=5, show_default=True, type=click.IntRange(0, 100), help="Hot entities to name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options
def stats(top: int, as_json: bool, config: Path | None, data: Path | None) -> int:
    """Print what is in the store: collections, their partitions by the hash of document ids, and the entities that most passages mention.

    Hot entities are looked for in a sample of the passages; their mentions are counted over the whole collection.
    """
    with plain_errors():
        settings = read_settings(config, data).settings
    return run(_stats(settings, top=top, as_json=as_json))


async def _stats(settings: Settings, *, top: int, as_json: bool) -> int:
    async with AsyncExitStack() as stack:
        graph = Stores(settings, stack).graph
        report = await graph_report(graph, top=top, deadline=Deadline.after(_SECONDS))
    if as_json:
        click.echo(json.dumps(_as_json(report), ensure_ascii=False))
        return 0
    for entry, shape in zip(report.collections, report.shapes, strict=True):
        click.echo(
            f"{entry.name}: {entry.document_count:,} documents, {entry.passage_count:,} passages,"
            f" {entry.entity_count:,} entities, revision {entry.revision:,}"
        )
        click.echo(
            f"  documents in {PARTITIONS} partitions: {shape.smallest:,} to {shape.largest:,}, median {shape.median:,g}"
        )
        for entity in shape.hot:
            click.echo(f"  {entity.mentions:,} passages mention {entity.name}")
    if not report.collections:
        click.echo("There are no collections yet; 'loremesh ingest' makes one.")
    if report.version is not None:
        click.echo(
            f"version {report.version:,}, {report.given_up:,} given up, {report.unswept:,} not swept yet,"
            f" {report.purging:,} deleted collections not purged yet"
        )
    return 0


def _as_json(report: GraphReport) -> dict[str, object]:
    collections = [
        {
            "name": entry.name,
            "documents": entry.document_count,
            "passages": entry.passage_count,
            "entities": entry.entity_count,
            "revision": entry.revision,
            "partitions": {"smallest": shape.smallest, "median": shape.median, "largest": shape.largest},
            "hot": [{"entity": entity.name, "mentions": entity.mentions} for entity in shape.hot],
            "sampledPassages": shape.sampled,
        }
        for entry, shape in zip(report.collections, report.shapes, strict=True)
    ]
    versions = {
        "version": report.version,
        "givenUp": report.given_up,
        "unswept": report.unswept,
        "purging": report.purging,
    }
    return {"collections": collections, **({} if report.version is None else versions)}
