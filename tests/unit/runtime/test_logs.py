import io
import json
import logging
import re

import pytest

from loremesh_agents.runtime.context import RequestContext, activate
from loremesh_agents.runtime.logs import JsonFormatter, TextFormatter, configure_logging


def record(message="hello %s", *args, **extra):
    return logging.getLogger("test.logger").makeRecord(
        "test.logger", logging.INFO, "file.py", 1, message, args or ("world",), None, extra=extra
    )


def test_a_line_is_one_json_object():
    line = JsonFormatter().format(record(code="OK", duration_ms=1.5, things=[1, 2]))
    assert "\n" not in line
    parsed = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", parsed.pop("time"))
    assert parsed == {
        "level": "INFO",
        "logger": "test.logger",
        "message": "hello world",
        "code": "OK",
        "duration_ms": 1.5,
        "things": [1, 2],
    }


def test_within_a_call_it_names_the_call():
    with activate(RequestContext(query_id="q1", agent="retriever", method="a.B/C")):
        parsed = json.loads(JsonFormatter().format(record()))
    assert (parsed["query_id"], parsed["agent"], parsed["method"]) == ("q1", "retriever", "a.B/C")
    assert "query_id" not in json.loads(JsonFormatter().format(record()))


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@pytest.mark.parametrize("name", ["password", "api_token", "Authorization", "client_secret", "groups", "principal"])
def test_secrets_and_groups_are_never_written(formatter, name):
    line = formatter.format(record(**{name: "hunter2", "visible": "yes"}))
    assert "hunter2" not in line
    assert "yes" in line


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_exceptions_are_written_with_their_traceback(formatter):
    try:
        raise ValueError("boom")
    except ValueError as error:
        line = formatter.format(
            logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, error.__traceback__)})
        )
    assert "ValueError: boom" in line
    assert "test_logs.py" in line


def test_what_json_cannot_say_is_written_as_text():
    line = JsonFormatter().format(record(thing=object, text="\ud800", number=2**70))
    assert "object" in json.loads(line)["thing"]


def test_nothing_breaks_a_line_of_text():
    line = TextFormatter().format(record("first\nsecond %s", code="a\nb"))
    assert line.count("\n") == 0


@pytest.fixture
def root():
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logging.captureWarnings(False)
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_configuring_twice_writes_once(root):
    stream = io.StringIO()
    configure_logging("INFO", "json", stream)
    configure_logging("INFO", "json", stream)
    logging.getLogger("somebody").info("hello")
    logging.getLogger("somebody").debug("too quiet")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["hello"]


def test_a_terminal_gets_text_and_a_file_json(root):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, begins in ((Terminal(), ""), (io.StringIO(), "{")):
        configure_logging("INFO", stream=stream)
        logging.getLogger("somebody").info("hello")
        assert stream.getvalue().startswith(begins)
        assert "hello" in stream.getvalue()
        assert stream.getvalue().startswith("{") is bool(begins)
