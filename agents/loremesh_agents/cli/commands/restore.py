"""`loremesh restore`."""

from pathlib import Path

import click

from loremesh_agents.bootstrap.backup import restore
from loremesh_agents.cli.backups import print_report, shown_progress
from loremesh_agents.cli.session import plain_errors, read_settings, settings_options


@click.command("restore")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options
def command(folder: Path, as_json: bool, config: Path | None, data: Path | None) -> int:
    """Put the backup in FOLDER where the settings want the embedded stores; no store may be there yet, and no agent run."""
    with plain_errors(), shown_progress(hidden=as_json) as progress:
        stores = read_settings(config, data).settings.stores
        report = restore(stores, folder, progress)
    print_report(report, "restored", as_json=as_json)
    if not as_json and any("opensearch" in url or "cassandra" in url for url in (stores.vectors, stores.text)):
        click.echo(
            "Indexes outside may be ahead of it: 'loremesh collections NAME --rebuild' for each collection.", err=True
        )
    return 0
