"""Entry point: commands are imported when they are used, so that help comes at once."""

import importlib
import os
import sys

import click

from loremesh_agents.cli.exits import EXIT_CODES, USAGE, CommandError

# Before numpy loads: its matrices are small here, and threads that spin for them cost three times the processor time of a whole query.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Before gRPC loads: what we start are other programs, for which its handlers of fork() do nothing but write to the terminal.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_COMMANDS = {
    "ask": "Ask a question; prints the answer as it is written, then its sources.",
    "backup": "Copy the embedded stores while agents go on.",
    "chat": "Talk: each question is understood from those before it.",
    "collections": "List, show and delete collections.",
    "config": "Show the settings that are in force.",
    "demo": "Ingest the Python language reference and ask three questions.",
    "graph": "Look after the graph store: its schema, and what is in it.",
    "health": "Ask the agents whether they are ready.",
    "ingest": "Read files or folders into a collection.",
    "restore": "Put a backup where no store is yet.",
    "serve": "Serve one agent, several, or all.",
    "tune-engine": "Try settings of an engine out, and name the best.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        # The name is one of the table's above.
        module = importlib.import_module(f"loremesh_agents.cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="loremesh")
def loremesh() -> None:
    """Answers questions from your documents, with sources.

    Without --address a command serves the agents it needs itself, on loopback, over the data folder of the settings.
    """


def main() -> None:
    """Runs the command and exits with its code."""
    try:
        code = loremesh.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(USAGE)
    except CommandError as error:
        error.show()
        sys.exit(error.code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
