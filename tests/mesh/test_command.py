"""The `loremesh` command as a person and a script use it."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.openai_server import DONE, Behaviour, event, serving

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("LOREMESH_")}


def loremesh(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loremesh_agents.cli", *arguments],
        env={**ENVIRONMENT, "LOREMESH_STORES__EMBEDDER": "none", **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "people").mkdir(parents=True)
    (folder / "acme.md").write_text("# Acme Corporation\n\nJane Doe has led Acme Corporation since 2019.\n")
    (folder / "people" / "jane.txt").write_text("Jane Doe\n========\n\nJane Doe was born in Lisbon in 1975.\n")
    return folder


def test_a_collection_that_cannot_be_embedded_anew_is_left_as_it_is(notes: Path, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    assert loremesh("ingest", str(notes), "-c", "notes", *data).returncode == 0
    for action, code, sentence in (
        ("--reembed", 1, "there is no encoder of any model"),
        ("--rollback", 1, "notes has no vectors of before none to go back to"),
        ("--finish", 0, ""),
    ):
        found = loremesh("collections", "notes", action, *data)
        assert (found.returncode, sentence in found.stderr) == (code, True)
    both = loremesh("collections", "notes", "--reembed", "--delete", *data)
    assert (both.returncode, "goes with no other action" in both.stderr) == (2, True)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom loremesh_agents.cli.main import loremesh\n"
        "loremesh.main(['--help'], standalone_mode=False)\n"
        "print([name for name in ('grpc', 'numpy', 'pydantic', 'rich', 'faiss') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert "Exit codes" in found.stdout


def test_files_are_read_asked_and_synchronised(notes: Path, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    first = loremesh("ingest", str(notes), "-c", "notes", "--sync", *data)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("2 new, 0 changed, 0 unchanged, 0 failed, 0 deleted")

    asked = loremesh("ask", "Who has led Acme Corporation since 2019?", "--why", *data)
    assert asked.returncode == 0
    assert asked.stdout.startswith("Jane Doe has led Acme Corporation since 2019. [1]")
    assert "[1] Acme Corporation" in asked.stdout

    events = loremesh("ask", "Who has led Acme Corporation since 2019?", "--json", *data)
    lines = [json.loads(line) for line in events.stdout.splitlines()]
    assert "plan" in lines[0]
    assert "completion" in lines[-1]

    (notes / "people" / "jane.txt").unlink()
    (notes / "bad.pdf").write_bytes(b"%PDF nothing")
    failed = tmp_path / "failed.txt"
    second = loremesh("ingest", str(notes), "-c", "notes", "--sync", "--failed", str(failed), *data)
    assert second.returncode == 5
    assert second.stdout.startswith("0 new, 0 changed, 1 unchanged, 1 failed, 1 deleted")
    assert "bad.pdf" in second.stderr
    assert failed.read_text() == f"{notes / 'bad.pdf'}\n"

    listed = loremesh("collections", "--json", *data)
    assert json.loads(listed.stdout)["documentCount"] == "1"


def test_a_collection_can_be_made_with_statistics_per_set_of_readers(notes: Path, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    assert loremesh("ingest", str(notes), "-c", "closed", "--reader-statistics", *data).returncode == 0
    listed = loremesh("collections", "closed", "--json", *data)
    assert json.loads(listed.stdout)["options"] == {"readerStatistics": True}
    assert loremesh("ingest", str(notes), "-c", "closed", *data).returncode == 0
    assert loremesh("ingest", str(notes), "-c", "open", *data).returncode == 0
    other = loremesh("ingest", str(notes), "-c", "open", "--reader-statistics", *data)
    assert other.returncode not in (0, 5)
    assert "'open' was created with reader_statistics false" in other.stderr


def test_errors_are_sentences_with_exit_codes(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    missing = loremesh("ask", "Who?", "-c", "nowhere", *data)
    assert missing.returncode == 4
    assert "There is no collection 'nowhere'." in missing.stderr
    away = loremesh("ask", "Who?", "--address", "127.0.0.1:1", "--timeout", "5", *data)
    assert away.returncode == 3
    assert "coordinator" in away.stderr
    unknown = loremesh("config", "show", LOREMESH_RETREIVER__DEFAULT_BUDGET="1")
    assert unknown.returncode == 2
    assert "LOREMESH_RETREIVER__DEFAULT_BUDGET" in unknown.stderr
    wrong = loremesh("config", "show", LOREMESH_RETRIEVER__DEFAULT_BUDGET="-1")
    assert wrong.returncode == 2
    assert "retriever.default_budget" in wrong.stderr
    assert loremesh("serve", "nobody").returncode == 2
    assert loremesh("ingest", str(tmp_path / "never"), "-c", "c", *data).returncode == 2


def test_settings_say_where_they_come_from(tmp_path: Path) -> None:
    config = tmp_path / "loremesh.toml"
    config.write_text("[generator]\ndefault_max_tokens = 7\n[retriever]\ndefault_budget = 3.0\n")
    found = loremesh("config", "show", "--json", "--config", str(config), LOREMESH_RETRIEVER__DEFAULT_BUDGET="4")
    rows = {row["name"]: (row["value"], row["origin"]) for row in map(json.loads, found.stdout.splitlines())}
    assert rows["generator.default_max_tokens"] == ("7", str(config))
    assert rows["retriever.default_budget"] == ("4.0", "environment")
    assert rows["stores.embedder"] == ("none", "environment")
    assert rows["synthesizer.default_budget"][1] == "default"


def test_a_password_is_read_from_the_folder_of_secrets_and_shown_nowhere(tmp_path: Path) -> None:
    secrets, config = tmp_path / "secrets", tmp_path / "loremesh.toml"
    secrets.mkdir()
    (secrets / "stores__graph_password").write_text("swordfish")
    config.write_text("")
    shown = loremesh("config", "show", "--json", "--config", str(config), LOREMESH_SECRETS=str(secrets))
    rows = {row["name"]: (row["value"], row["origin"]) for row in map(json.loads, shown.stdout.splitlines())}
    assert rows["stores.graph_password"] == ("**********", f"secrets in {secrets}")
    config.write_text("[stores]\ngraph_password = 12345\n")
    refused = loremesh("config", "show", "--config", str(config))
    assert refused.returncode == 2
    assert "stores.graph_password" in refused.stderr
    for output in (shown, refused):
        assert "swordfish" not in output.stdout + output.stderr
        assert "12345" not in output.stdout + output.stderr


def test_health_of_nobody_is_an_error() -> None:
    addresses = {f"LOREMESH_ADDRESSES__{name}": "127.0.0.1:1" for name in ("COORDINATOR", "RETRIEVER")}
    found = loremesh("health", "coordinator", "retriever", "--json", **addresses)
    assert found.returncode == 3
    assert {json.loads(line)["state"] for line in found.stdout.splitlines()} == {"does not answer"}


def test_the_embedded_graph_is_looked_after(notes: Path, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    planned = loremesh("graph", "migrate", "--plan", *data)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "nothing to do" in planned.stdout
    assert loremesh("graph", "stats", *data).stdout.startswith("There are no collections yet")
    assert loremesh("ingest", str(notes), "-c", "notes", *data).returncode == 0
    (collection,) = json.loads(loremesh("graph", "stats", "--json", *data).stdout)["collections"]
    assert (collection["name"], collection["documents"], collection["revision"] > 0) == ("notes", 2, True)
    assert (collection["partitions"]["smallest"], collection["partitions"]["median"]) == (0, 0)
    assert {"entity": "Jane Doe", "mentions": 2} in collection["hot"]
    assert "  2 passages mention Jane Doe\n" in loremesh("graph", "stats", *data).stdout


async def test_in_a_chat_the_model_may_search_again(notes: Path, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    assert (await asyncio.to_thread(loremesh, "ingest", str(notes), "-c", "notes", *data)).returncode == 0

    function = {"name": "retrieve", "arguments": '{"question": "Where was Jane Doe born?"}'}
    call = {"tool_calls": [{"index": 0, "id": "call-a", "function": function}]}
    engine = Behaviour()

    def asked(**delta: object) -> str:
        return event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def ended(reason: str) -> str:
        return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})

    async def answer_next(_: int) -> None:
        engine.script = [asked(content="In Lisbon [2]."), ended("stop"), DONE]

    engine.script = [0, asked(**call), ended("tool_calls"), DONE]
    engine.before_token = answer_next
    async with serving(engine) as address:
        question = "Who has led Acme Corporation since 2019?\n"
        model = {"LOREMESH_STORES__MODEL": f"openai+{address}"}
        chat = await asyncio.to_thread(loremesh, "chat", "--tools", "1", *data, stdin=question, **model)
        assert chat.returncode == 0
        assert '(retrieve {"question": "Where was Jane Doe born?"})' in chat.stderr
        assert "In Lisbon [2]." in chat.stdout
        assert "[2] Jane Doe" in chat.stdout
        offered = ["tools" in body for path, body in engine.requests if path == "/v1/chat/completions"]
        assert offered == [True, False]

        engine.requests.clear()
        assert (await asyncio.to_thread(loremesh, "chat", *data, stdin=question, **model)).returncode == 0
        assert not any("tools" in body for _, body in engine.requests)
