"""Log lines as JSON for machines or as text for a terminal; each names the query, agent and method it belongs to."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

from loremesh_agents.runtime.context import current_or_none

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""What every record has; anything else in it came by `extra`."""

_SECRET = ("authorization", "credential", "groups", "password", "principal", "secret", "token")
"""Parts of the names of extras whose values never reach a log."""

_HIDDEN = "***"

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
"""What would begin a new line, or speak to the terminal: logged text may come from strangers."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the call's circumstances, then what came by `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_circumstances(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            # Half a surrogate pair or a huge number: the standard library writes those too.
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One readable line, with the exception below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = " ".join(f"{key}={value}" for key, value in {**_circumstances(), **_extras(record)}.items())
        line = f"{time} {record.levelname:<7} {record.name}: {record.getMessage()}"
        if fields:
            line = f"{line}  [{fields}]"
        line = line.translate(_CONTROLS)
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def configure_logging(
    level: str = "INFO", style: Literal["json", "text", "auto"] = "auto", stream: TextIO | None = None
) -> None:
    """Sets up the process's logging: everything goes to one stream. For commands, once, at their start.

    Args:
        level: Lowest level that is logged.
        style: `auto` is text on a terminal and JSON elsewhere.
        stream: Where to, by default standard error.
    """
    output = stream if stream is not None else sys.stderr
    if style == "auto":
        style = "text" if output.isatty() else "json"
    handler = logging.StreamHandler(output)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)


def _circumstances() -> Mapping[str, object]:
    context = current_or_none()
    if context is None:
        return {}
    return {"query_id": context.query_id, "agent": context.agent, "method": context.method}


def _extras(record: logging.LogRecord) -> Mapping[str, object]:
    return {
        key: _HIDDEN if any(part in key.lower() for part in _SECRET) else value
        for key, value in vars(record).items()
        if key not in _STANDARD
    }
