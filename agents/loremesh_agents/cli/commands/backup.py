"""`loremesh backup`."""

from pathlib import Path

import click

from loremesh_agents.bootstrap.backup import back_up
from loremesh_agents.cli.backups import print_report, shown_progress
from loremesh_agents.cli.session import plain_errors, read_settings, settings_options


@click.command("backup")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options
def command(folder: Path, as_json: bool, config: Path | None, data: Path | None) -> int:
    """Copy the embedded stores into FOLDER, which is made, while agents go on reading and writing.

    It reads the files of the settings itself, so it runs on the machine that has them.
    """
    with plain_errors(), shown_progress(hidden=as_json) as progress:
        report = back_up(read_settings(config, data).settings.stores, folder, progress)
    print_report(report, f"in {folder}", as_json=as_json)
    return 0
