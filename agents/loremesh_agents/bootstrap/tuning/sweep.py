"""Tries settings of an engine out, one combination after the other, and names the best."""

import asyncio
import json
import re
import shlex
import socket
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.settings import LanguageModelSettings, StoreSettings
from loremesh_agents.bootstrap.tuning.engine_process import EngineProcess, EngineStart, engine_process, gpu_megabytes
from loremesh_agents.bootstrap.tuning.measurement import Load, Measurement, measure
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import ConfigurationError, LoremeshError, Unavailable
from loremesh_agents.ports.language_model import LanguageModel

PORT = "port"
SWEPT = ("context", "sequences", "batched_tokens", "tensor_parallel")
"""What can be swept, by the names of the placeholders."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_ASK_SECONDS = 2.0
_PAUSE_SECONDS = 0.2
_DYING_SECONDS = 5.0
"""Time that an engine needs to end after it has hung up."""
_SERVED_PORT = 8000


@dataclass(frozen=True, slots=True)
class Template:
    """How an engine is started and reached.

    Attributes:
        command: Program and arguments with `{port}` and the placeholders of what is swept.
        url: As in `stores.model`, with `{port}`.
        values: What to try, by placeholder.
        start_seconds: Time that an engine has until it serves.
    """

    command: tuple[str, ...]
    url: str
    values: Mapping[str, Sequence[int]]
    start_seconds: float

    def check(self) -> None:
        """Refuses what cannot be measured.

        Raises:
            ConfigurationError: A placeholder is unknown, missing, or without values.
        """
        used = {name for argument in self.command for name in _PLACEHOLDER.findall(argument)}
        known = {PORT, *SWEPT}
        for name in sorted(used - known):
            listed = ", ".join(f"{{{other}}}" for other in (PORT, *SWEPT))
            raise ConfigurationError(
                f"the placeholder {{{name}}} of the engine's command is unknown; there are {listed}"
            )
        if PORT not in used or f"{{{PORT}}}" not in self.url:
            raise ConfigurationError(
                f"the engine's command {shlex.join(self.command)!r} and its URL {self.url!r} must both hold {{port}}: each engine gets a free one"
            )
        for name in SWEPT:
            option = f"--{name.replace('_', '-')}"
            if self.values.get(name) and name not in used:
                raise ConfigurationError(f"{option} changes nothing: the engine's command does not hold {{{name}}}")
            if name in used and not self.values.get(name):
                raise ConfigurationError(f"the engine's command holds {{{name}}}: say what to try with {option}")

    def combinations(self) -> list[Mapping[str, int]]:
        """All combinations of the values."""
        names = [name for name in SWEPT if self.values.get(name)]
        return [dict(zip(names, chosen, strict=True)) for chosen in product(*(self.values[name] for name in names))]

    def filled(self, combination: Mapping[str, int], port: int) -> list[str]:
        """The command of a combination."""
        values = {**combination, PORT: port}
        return [_PLACEHOLDER.sub(lambda found: str(values[found[1]]), argument) for argument in self.command]

    def address(self, port: int) -> str:
        """The URL at a port."""
        return self.url.replace(f"{{{PORT}}}", str(port))


@dataclass(frozen=True, slots=True)
class Row:
    """A combination and what came of it: a measurement, or why there is none."""

    combination: Mapping[str, int]
    measurement: Measurement | None
    error: str = ""

    def meets(self, first_token_ms: float | None) -> bool:
        """Whether 99 of 100 first tokens came within a time; any time will do where there is none."""
        measured = self.measurement
        return measured is not None and (first_token_ms is None or measured.first_token_p99 <= first_token_ms)


async def sweep(template: Template, load: Load, settings: LanguageModelSettings) -> AsyncGenerator[Row]:
    """Measures each combination; an engine runs only while it is measured.

    Args:
        template: How the engine is started.
        load: What it is measured under.
        settings: How it is used.

    Raises:
        ConfigurationError: The URL names no engine that this build knows.
    """
    await _open(template, _SERVED_PORT, settings).close()
    for combination in template.combinations():
        yield await _measured(template, combination, load, settings)


def best(rows: Sequence[Row], first_token_ms: float | None) -> Row | None:
    """The row that meets the goal with most tokens a second, and least memory where several do.

    Args:
        rows: What was measured.
        first_token_ms: The goal, for 99 of 100 first tokens; None for no goal.
    """
    able = [row for row in rows if row.meets(first_token_ms)]
    return max(able, key=_merit, default=None)


def configuration(row: Row, template: Template) -> str:
    """Settings of ours for a row, as TOML; the command that starts the engine is a comment at its head.

    Args:
        row: A row with a measurement.
        template: How its engine was started.
    """
    measured = row.measurement
    assert measured is not None
    firsts = f"{measured.first_token_p50:.0f} ms (p50) and {measured.first_token_p99:.0f} ms (p99)"
    lines = [
        "# Written by `loremesh tune-engine`. The engine, at a port of its own choice:",
        f"# {shlex.join(template.filled(row.combination, _SERVED_PORT))}",
        f"# Measured: first token {firsts}, {measured.tokens_per_second:.0f} tokens/s.",
        "",
        "[stores]",
        # What JSON writes is a string of TOML as well.
        f"model = {json.dumps(template.address(_SERVED_PORT))}",
    ]
    if "context" in row.combination:
        lines += ["", "[language_model]", f"context_tokens = {row.combination['context']}"]
    if "sequences" in row.combination:
        tokens = max(1, round(row.combination["sequences"] * measured.weight))
        lines += [
            "",
            "[generator]",
            "# As many generations like those that were measured as the engine is at work on at once.",
            f"tokens_in_flight = {tokens}",
        ]
    return "\n".join([*lines, ""])


def _merit(row: Row) -> tuple[float, float]:
    assert row.measurement is not None
    return row.measurement.tokens_per_second, -(row.measurement.memory or 0.0)


async def _measured(
    template: Template, combination: Mapping[str, int], load: Load, settings: LanguageModelSettings
) -> Row:
    port = _free_port()
    settings = settings.model_copy(update={"context_tokens": combination.get("context", settings.context_tokens)})
    gpu_before = await gpu_megabytes()
    with tempfile.TemporaryDirectory(prefix="loremesh-") as folder:
        try:
            async with engine_process(template.filled(combination, port), Path(folder) / "engine.log") as process:
                model = _open(template, port, settings)
                try:
                    await _serving(model, process, template.start_seconds)
                    try:
                        measurement = await measure(model, load, process, gpu_before=gpu_before)
                    except LoremeshError as error:
                        if isinstance(error, Unavailable) and await process.ends_within(_DYING_SECONDS):
                            raise EngineStart(f"it ended while it was measured, {await process.last_words()}") from None
                        return Row(combination, None, error.message)
                finally:
                    await model.close()
        except EngineStart as error:
            return Row(combination, None, str(error))
    return Row(combination, measurement)


def _open(template: Template, port: int, settings: LanguageModelSettings) -> LanguageModel:
    return backends.open_model(StoreSettings(model=template.address(port)), settings)


async def _serving(model: LanguageModel, process: EngineProcess, seconds: float) -> None:
    """Returns as soon as the engine answers."""
    deadline = Deadline.after(seconds)
    while True:
        if process.ended:
            raise EngineStart(f"it does not start, {await process.last_words()}")
        if deadline.expired:
            raise EngineStart(f"it does not serve within {seconds:g} s: {await process.last_words()}")
        try:
            await model.models(deadline=deadline.shrink(cap=_ASK_SECONDS))
        except LoremeshError:
            await asyncio.sleep(_PAUSE_SECONDS)  # it says nowhere that it is ready
        else:
            return


def _free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
