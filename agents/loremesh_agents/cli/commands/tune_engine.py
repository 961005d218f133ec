"""`loremesh tune-engine`."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from loremesh_agents.bootstrap.settings import LanguageModelSettings
from loremesh_agents.bootstrap.tuning.measurement import Load
from loremesh_agents.bootstrap.tuning.sweep import SWEPT, Row, Template, best, configuration, sweep
from loremesh_agents.cli.exits import FAILED, OK
from loremesh_agents.cli.session import plain_errors, read_settings, run, settings_options

_URL = "openai+http://127.0.0.1:{port}/v1"


def _values(name: str, meaning: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    return click.option(
        f"--{name}",
        multiple=True,
        type=click.IntRange(min=1),
        help=f"{meaning} to try, for {{{name.replace('-', '_')}}}; may be repeated.",
    )


@click.command("tune-engine")
@click.argument("engine", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option(
    "--prompts",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of prompts, one a line.",
)
@click.option("--url", default=_URL, show_default=True, help="The engine, as in the setting stores.model.")
@_values("context", "Context length in tokens")
@_values("sequences", "Most generations at once")
@_values("batched-tokens", "Most tokens of a batch")
@_values("tensor-parallel", "Tensor-parallel size")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 4096),
    default=8,
    show_default=True,
    help="Generations that are asked for at once.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=1, show_default=True, help="How often each prompt is asked."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Most tokens of an answer."
)
@click.option(
    "--first-token-ms",
    type=click.FloatRange(0, min_open=True),
    help="The goal: 99 of 100 first tokens come within this time.",
)
@click.option(
    "--start-seconds",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Time to start an engine.",
)
@click.option(
    "--request-seconds",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    help="Time for an answer.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write the best settings to, as TOML."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object for each combination, and one for the best."
)
@settings_options
def command(
    engine: tuple[str, ...],
    prompts: Path,
    url: str,
    concurrency: int,
    rounds: int,
    max_tokens: int,
    first_token_ms: float | None,
    start_seconds: float,
    request_seconds: float,
    output: Path | None,
    as_json: bool,
    config: Path | None,
    data: Path | None,
    **values: tuple[int, ...],
) -> int:
    """Start an engine with each combination of settings, measure it, and name the fastest that meets the goal.

    COMMAND starts the engine on loopback. It holds {port}, and a placeholder for each setting that is tried: {context}, {sequences},
    {batched_tokens}, {tensor_parallel}. No shell sees it.
    """
    template = Template(engine, url, {name: _once(values[name]) for name in SWEPT}, start_seconds)
    with plain_errors():
        settings = read_settings(config, data).settings
        template.check()
    if output is not None and not output.parent.is_dir():
        raise click.BadParameter(f"the folder {output.parent} does not exist.", param_hint="--output")
    load = Load(_lines(prompts), concurrency, rounds, max_tokens, request_seconds)
    return run(_tune(template, load, settings.language_model, first_token_ms, output, as_json=as_json))


def _once(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(values))


def _lines(prompts: Path) -> list[str]:
    try:
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{prompts} cannot be read: {error}", param_hint="--prompts") from None
    if not lines:
        raise click.BadParameter(f"{prompts} holds no prompt; it needs one a line.", param_hint="--prompts")
    return lines


async def _tune(
    template: Template,
    load: Load,
    settings: LanguageModelSettings,
    first_token_ms: float | None,
    output: Path | None,
    *,
    as_json: bool,
) -> int:
    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task("combinations", total=len(template.combinations()))
        async with aclosing(sweep(template, load, settings)) as measured:
            async for row in measured:
                rows.append(row)
                progress.advance(task)
                if as_json:
                    click.echo(json.dumps(_as_json(row, first_token_ms)))
    chosen = best(rows, first_token_ms)
    if not as_json:
        _print_table(rows, chosen, first_token_ms)
    if chosen is None:
        click.echo("No combination meets the goal." if _any(rows) else "No combination could be measured.", err=True)
        return FAILED
    written = configuration(chosen, template)
    if output is not None:
        await asyncio.to_thread(output.write_text, written, encoding="utf-8")
    if as_json:
        best_row = {**_as_json(chosen, first_token_ms), "configuration": written}
        click.echo(json.dumps({"best": best_row, "output": None if output is None else str(output)}))
    else:
        where = "" if output is None else f"; written to {output}"
        click.echo(f"best: {_named(chosen.combination)}{where}")
    return OK


def _any(rows: Sequence[Row]) -> bool:
    return any(row.measurement is not None for row in rows)


def _named(combination: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in combination.items()) or "the engine as it is"


def _as_json(row: Row, first_token_ms: float | None) -> dict[str, object]:
    measured = row.measurement
    if measured is None:
        return {"settings": dict(row.combination), "error": row.error}
    return {
        "settings": dict(row.combination),
        "first_token_ms_p50": round(measured.first_token_p50, 1),
        "first_token_ms_p99": round(measured.first_token_p99, 1),
        "tokens_per_s": round(measured.tokens_per_second, 1),
        "memory_mb": None if measured.memory is None else round(measured.memory),
        "gpu_memory_mb": None if measured.gpu_memory is None else round(measured.gpu_memory),
        "meets_goal": row.meets(first_token_ms),
    }


def _print_table(rows: Sequence[Row], chosen: Row | None, first_token_ms: float | None) -> None:
    names = list(rows[0].combination)
    table = Table(caption="* the best" if chosen is not None else None)
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for heading in ("first token p50 ms", "p99 ms", "tokens/s", "memory MB", "GPU MB"):
        table.add_column(heading, justify="right")
    table.add_column("goal" if first_token_ms is None else f"within {first_token_ms:g} ms")
    for row in rows:
        measured = row.measurement
        cells = [str(row.combination[name]) for name in names]
        if measured is None:
            table.add_row("", *cells, "", "", "", "", "", Text(row.error))
            continue
        figures = (
            f"{measured.first_token_p50:.0f}",
            f"{measured.first_token_p99:.0f}",
            f"{measured.tokens_per_second:.0f}",
            "" if measured.memory is None else f"{measured.memory:.0f}",
            "" if measured.gpu_memory is None else f"{measured.gpu_memory:.0f}",
        )
        meets = "" if first_token_ms is None else "yes" if row.meets(first_token_ms) else "no"
        table.add_row("*" if row is chosen else "", *cells, *figures, meets)
    Console().print(table)
