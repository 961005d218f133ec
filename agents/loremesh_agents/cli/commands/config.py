"""`loremesh config`."""

import json
from pathlib import Path

import click

from loremesh_agents.bootstrap.settings import effective
from loremesh_agents.cli.session import plain_errors, read_settings, settings_options


@click.group("config")
def command() -> None:
    """Show the settings that are in force."""


@command.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print one setting a line, as JSON.")
@settings_options
def show(
    as_json: bool,
    config: Path | None,
    data: Path | None,
) -> int:
    """Print every setting, its value, and where the value came from."""
    with plain_errors():
        rows = effective(read_settings(config, data))
    if as_json:
        for name, value, origin in rows:
            click.echo(json.dumps({"name": name, "value": value, "origin": origin}))
        return 0
    width = max(len(name) for name, _, _ in rows)
    for name, value, origin in rows:
        click.echo(f"{name:<{width}}  {value}  " + click.style(f"({origin})", dim=True))
    return 0
