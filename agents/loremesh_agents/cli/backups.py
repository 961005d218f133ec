"""What `loremesh backup` and `loremesh restore` show."""

import json
from collections.abc import Generator
from contextlib import contextmanager

import click

from loremesh_agents.bootstrap.backup import BackupReport, Progress


@contextmanager
def shown_progress(*, hidden: bool) -> Generator[Progress]:
    """A function that shows progress on a terminal: a bar for each thing that is under way."""
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
    )
    with rich_progress.Progress(*columns, console=console, disable=hidden or not console.is_terminal) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def print_report(report: BackupReport, where: str, *, as_json: bool) -> None:
    """Prints what a backup holds."""
    if as_json:
        fields = {"created": report.created, "collections": report.collections, "files": report.files}
        click.echo(json.dumps(fields, ensure_ascii=False))
        return
    states = ", ".join(f"{name} at revision {revision:,}" for name, revision in report.collections.items())
    size = sum(report.files.values()) / 1e6
    click.echo(f"{len(report.files)} files, {size:,.1f} MB {where}: {states or 'no collections'}.")
