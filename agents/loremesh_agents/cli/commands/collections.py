"""`loremesh collections`."""

import json
from functools import partial
from pathlib import Path

import click
from google.protobuf import json_format
from loremesh.v1 import collection_pb2
from loremesh.v1 import knowledge_service_pb2 as pb
from loremesh.v1 import knowledge_service_pb2_grpc as pb_grpc

from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.reembedding import change_embedding
from loremesh_agents.cli.session import connected, plain_errors, read_settings, run, settings_options
from loremesh_agents.cli.turns import in_turn
from loremesh_agents.domain.deadline import Deadline

_SECONDS = 30.0
_REBUILDING_SECONDS = 6 * 3600.0


@click.command("collections")
@click.argument("name", required=False)
@click.option("--delete", is_flag=True, help="Delete the collection NAME with all that is in it.")
@click.option("--rebuild", is_flag=True, help="Build the text and vector indexes of the collection NAME anew.")
@click.option("--reembed", is_flag=True, help="Embed NAME with the encoder of the settings, while questions go on.")
@click.option("--rollback", is_flag=True, help="Give up embedding NAME anew, or go back to its vectors of before.")
@click.option("--finish", is_flag=True, help="Remove the vectors that --rollback of NAME would go back to.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting.")
@click.option("--json", "as_json", is_flag=True, help="Print one collection a line, as JSON.")
@click.option("--address", help="A knowledge agent, as in 127.0.0.1:50055. Default: serve it here.")
@settings_options
def command(
    name: str | None,
    delete: bool,
    rebuild: bool,
    reembed: bool,
    rollback: bool,
    finish: bool,
    yes: bool,
    as_json: bool,
    address: str | None,
    config: Path | None,
    data: Path | None,
) -> int:
    """List all collections, or show NAME."""
    with plain_errors():
        settings = read_settings(config, data).settings
    chosen = {"delete": delete, "rebuild": rebuild, "reembed": reembed, "rollback": rollback, "finish": finish}
    actions = [action for action, wanted in chosen.items() if wanted]
    if actions:
        if name is None or len(actions) > 1:
            raise click.UsageError(f"--{actions[0]} needs the NAME of a collection, and goes with no other action.")
        if rebuild:
            return run(_rebuild(name, settings, address))
        if not delete:
            return run(change_embedding(name, actions[0], settings, address, as_json=as_json))
        if not yes:
            click.confirm(f"Delete the collection {name} with all its documents?", abort=True)
        return run(_delete(name, settings, address))
    return run(_show(name, settings, address, as_json=as_json))


async def _show(name: str | None, settings: Settings, address: str | None, *, as_json: bool) -> int:
    found: list[collection_pb2.Collection] = []
    async with connected("knowledge", address, settings, ("knowledge",)) as (channel, peer):
        stub: pb_grpc.KnowledgeServiceAsyncStub = pb_grpc.KnowledgeServiceStub(channel)
        deadline = Deadline.after(_SECONDS)
        if name is not None:
            got = await peer.unary(stub.GetCollection, pb.GetCollectionRequest(collection=name), deadline)
            found.append(got.collection)
        else:
            token = ""
            while True:
                page = await peer.unary(stub.ListCollections, pb.ListCollectionsRequest(page_token=token), deadline)
                found += page.collections
                token = page.next_page_token
                if not token:
                    break
    if as_json:
        for collection in found:
            click.echo(json.dumps(json_format.MessageToDict(collection), ensure_ascii=False))
        return 0
    _print_table(found)
    return 0


def _print_table(collections: list[collection_pb2.Collection]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("collection", "documents", "passages", "entities", "revision", "encoder", box=None)
    for entry in collections:
        counts = (entry.document_count, entry.passage_count, entry.entity_count, entry.revision.revision)
        table.add_row(entry.name, *(f"{count:,}" for count in counts), entry.embedding_model or "none")
    Console().print(table if collections else "There are no collections yet; 'loremesh ingest' makes one.")


async def _delete(name: str, settings: Settings, address: str | None) -> int:
    async with connected("knowledge", address, settings, ("knowledge",)) as (channel, peer):
        stub: pb_grpc.KnowledgeServiceAsyncStub = pb_grpc.KnowledgeServiceStub(channel)
        request = pb.DeleteCollectionRequest(collection=name)
        response = await in_turn(partial(peer.unary, stub.DeleteCollection, request))
    click.echo(f"{name} is deleted." if response.deleted else f"There was no collection {name}.")
    return 0


async def _rebuild(name: str, settings: Settings, address: str | None) -> int:
    async with connected("knowledge", address, settings, ("knowledge",)) as (channel, peer):
        stub: pb_grpc.KnowledgeServiceAsyncStub = pb_grpc.KnowledgeServiceStub(channel)
        request = pb.RebuildIndexesRequest(collection=name)
        response = await peer.unary(stub.RebuildIndexes, request, Deadline.after(_REBUILDING_SECONDS))
    click.echo(f"The indexes of {name} are built anew, up to revision {response.revision.revision}.")
    return 0
