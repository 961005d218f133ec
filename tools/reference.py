"""Writes docs/cli.md and docs/configuration.md from the command line and the settings themselves."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.cli.exits import EXIT_CODES
from loremesh_agents.cli.main import loremesh

_DOCS = Path(__file__).parent.parent / "docs"
_WIDTH = 100
_HEADING = "<!-- Written by `make reference`. -->\n"

_CLI = """# The command line

`--json` prints one JSON object a line for programs; messages for people go to standard error. Without `--address` a command serves the agents that it needs
itself, on loopback, over the data folder; with it, it talks to those that run.
"""

_CONFIGURATION = """# Settings

A value comes from the first of these that has it:

1. the command line (`--data`);
2. an environment variable: `LOREMESH_GENERATOR__DEFAULT_BUDGET=30` is `default_budget` of `[generator]`;
3. a file in the folder that `LOREMESH_SECRETS` names, called `generator__default_budget`;
4. the TOML file that `--config` or `LOREMESH_CONFIG` names;
5. its default.

Unknown names and values that are not allowed are refused with a message that names them. `loremesh config show` prints what is in force and where it came from.
Lists are written as JSON (`["reports","wiki"]`), and `null` is no value.

```toml
[stores]
data = "/var/lib/loremesh"

[security]
mode = "mtls"
certificate = "/etc/loremesh/tls.crt"
key = "/etc/loremesh/tls.key"
ca = "/etc/loremesh/ca.crt"

[retriever]
text_candidates = 200
```
"""


def cli() -> str:
    """The text of docs/cli.md."""
    codes = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    parts = [_HEADING + _CLI, "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *codes, ""])]
    parts += [f"## {name}\n\n```text\n{text}\n```\n" for name, text in _helps(loremesh, "loremesh", None)]
    return "\n".join(parts)


def _helps(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH)
    if parent is not None:
        yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None:
                yield from _helps(found, below, context)


def configuration() -> str:
    """The text of docs/configuration.md."""
    parts = [_HEADING + _CONFIGURATION]
    for name, group in Settings.model_fields.items():
        model = group.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        rows = [f"| `{field}` | {_default(field, info)} | {info.description or ''} |" for field, info in _fields(model)]
        heading = [
            f"## [{name}]",
            "",
            (model.__doc__ or "").strip(),
            "",
            "| setting | default | meaning |",
            "|---|---|---|",
        ]
        parts.append("\n".join([*heading, *rows, ""]))
    return "\n".join(parts)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    fields: Mapping[str, FieldInfo] = model.model_fields
    yield from fields.items()


def _default(name: str, info: FieldInfo) -> str:
    if info.default_factory is not None:
        return "`loremesh` in the user's data folder" if name == "data" else ""
    if isinstance(info.default, frozenset):
        return "`[]`"
    shown = "" if info.default is None else str(info.default)
    return f"`{shown}`" if shown else ""


def main() -> None:
    """Writes both."""
    (_DOCS / "cli.md").write_text(cli())
    (_DOCS / "configuration.md").write_text(configuration())


if __name__ == "__main__":
    main()
