"""`loremesh tune-engine` over an engine double that is a program: what it prints, what it writes, what it leaves behind."""

import json
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from loremesh_agents.bootstrap.settings import load
from tests.mesh.test_command import ENVIRONMENT, loremesh
from tests.repository.repository import ROOT

PROGRAM = str(ROOT / "tests" / "doubles" / "engine_program.py")
ENGINE = ("--", sys.executable, PROGRAM, "--port", "{port}")
SEQUENCES = ("--sequences", "{sequences}")
CONTEXT = ("--context", "{context}")


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[str, ...]:
    file = tmp_path / "prompts.txt"
    file.write_text("What is water?\n\nWho made the anvil?\nWhy?\n")
    return ("--prompts", str(file), "--max-tokens", "20", "--concurrency", "3", "--rounds", "2")


def tried(values: dict[str, tuple[int, ...]]) -> list[str]:
    return [word for name, several in values.items() for value in several for word in (f"--{name}", str(value))]


def test_the_fastest_that_meets_the_goal_is_named_and_written(prompts: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "tuned.toml"
    options = (
        *prompts,
        *tried({"sequences": (1, 4, 50)}),
        "--first-token-ms",
        "600",
        "--output",
        str(output),
        "--json",
    )
    found = loremesh("tune-engine", *options, *ENGINE, *SEQUENCES)
    assert found.returncode == 0, found.stderr
    one, four, fifty, last = map(json.loads, found.stdout.splitlines())
    assert [row["settings"] for row in (one, four, fifty)] == [{"sequences": n} for n in (1, 4, 50)]
    assert fifty["meets_goal"] is False
    assert fifty["first_token_ms_p50"] >= 1000
    for row in (one, four):
        assert row["meets_goal"] is True
        assert 20 <= row["first_token_ms_p50"] <= row["first_token_ms_p99"] <= 600
        assert row["memory_mb"] > 1
        assert row["tokens_per_s"] > 10
    rate = {row["settings"]["sequences"]: row["tokens_per_s"] for row in (one, four)}
    chosen = max(rate, key=lambda sequences: rate[sequences])
    assert last["best"]["settings"] == {"sequences": chosen}
    assert last["best"]["configuration"] == output.read_text()

    settings = load(output).settings
    assert settings.stores.model == "openai+http://127.0.0.1:8000/v1"
    assert settings.generator.tokens_in_flight == chosen * (7 + 20)
    assert shlex.join((*ENGINE[1:-1], "8000", "--sequences", str(chosen))) in output.read_text()


def test_an_engine_that_does_not_start_is_a_row_that_says_why(prompts: tuple[str, ...], tmp_path: Path) -> None:
    options = (
        *prompts,
        *tried({"context": (20_000, 9_999, 2_048)}),
        "--output",
        str(tmp_path / "tuned.toml"),
        "--json",
    )
    found = loremesh("tune-engine", *options, *ENGINE, *CONTEXT)
    assert found.returncode == 0, found.stderr
    large, fails, works, _ = map(json.loads, found.stdout.splitlines())
    assert large["error"] == (
        "it does not start, exit code 1: ValueError: not enough memory for a context of 20000 tokens"
    )
    assert "it ended while it was measured" in fails["error"]
    assert "the double fails at its first question" in fails["error"]
    assert works["tokens_per_s"] > 0
    written = tomllib.loads((tmp_path / "tuned.toml").read_text())
    assert written["language_model"] == {"context_tokens": 2_048}


def test_people_get_a_table(prompts: tuple[str, ...]) -> None:
    options = (*prompts, *tried({"context": (20_000, 4_096), "tensor-parallel": (1,)}))
    found = loremesh(
        "tune-engine", *options, *ENGINE, *CONTEXT, "--tensor-parallel", "{tensor_parallel}", COLUMNS="200"
    )
    assert found.returncode == 0, found.stderr
    assert "tokens/s" in found.stdout
    assert "not enough memory for a context of 20000 tokens" in found.stdout
    assert "best: context 4096, tensor_parallel 1" in found.stdout


def test_without_a_combination_that_meets_the_goal_nothing_is_written(prompts: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "tuned.toml"
    found = loremesh("tune-engine", *prompts, "--first-token-ms", "1", "--output", str(output), *ENGINE)
    assert (found.returncode, found.stderr) == (1, "No combination meets the goal.\n")
    assert not output.exists()


def test_a_program_that_is_not_there_is_a_row(prompts: tuple[str, ...]) -> None:
    found = loremesh("tune-engine", *prompts, "--json", "--", "no-such-engine", "{port}")
    assert (found.returncode, found.stderr) == (1, "No combination could be measured.\n")
    assert "no-such-engine cannot be run" in json.loads(found.stdout)["error"]


def test_an_engine_that_never_serves_is_given_up(prompts: tuple[str, ...]) -> None:
    engine = ("--", sys.executable, "-c", "import time\ntime.sleep(600)\n'{port}'")
    found = loremesh("tune-engine", *prompts, "--start-seconds", "1", "--json", *engine)
    assert found.returncode == 1
    assert json.loads(found.stdout)["error"] == "it does not serve within 1 s: it said nothing"


def gone(pid: int) -> bool:
    """Whether a process has ended; what is left of it until somebody waits for it does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_nothing_of_an_engine_is_left_behind(prompts: tuple[str, ...], tmp_path: Path) -> None:
    children = tmp_path / "children"
    found = loremesh("tune-engine", *prompts, *ENGINE, "--children", str(children))
    assert found.returncode == 0, found.stderr
    assert gone(int(children.read_text()))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs that are started inherit it where interruptions are ignored, as they are in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(240)  # two programs start and one ends, on a machine that may have much else to do
@pytest.mark.usefixtures("interruptible")
def test_an_interruption_ends_the_engine(prompts: tuple[str, ...], tmp_path: Path) -> None:
    children = tmp_path / "children"
    arguments = ("tune-engine", *prompts, "--rounds", "1000", *ENGINE, "--children", str(children))
    process = subprocess.Popen(
        [sys.executable, "-m", "loremesh_agents.cli", *arguments],
        env={**ENVIRONMENT, "LOREMESH_STORES__EMBEDDER": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 110
    while not (children.exists() and children.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)  # a file says when it is there
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=110)
    assert process.returncode == 130, errors
    assert gone(int(children.read_text()))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--", "engine"), "must both hold {port}"),
        (("--url", "openai+http://127.0.0.1:8000/v1", "--", "engine", "{port}"), "must both hold {port}"),
        (("--", "engine", "{port}", "{context}"), "say what to try with --context"),
        (("--context", "1024", "--", "engine", "{port}"), "--context changes nothing"),
        (("--", "engine", "{port}", "{contxt}"), "{contxt} of the engine's command is unknown"),
        (("--context", "0", "--", "engine", "{port}", "{context}"), "--context"),
        (("--url", "gopher://127.0.0.1:{port}", "--", "engine", "{port}"), "gopher"),
        (("--output", "nowhere/at/all.toml", "--", "engine", "{port}"), "nowhere"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    prompts: tuple[str, ...], arguments: tuple[str, ...], says: str
) -> None:
    found = loremesh("tune-engine", *prompts, *arguments)
    assert found.returncode == 2, found.stderr
    assert says in found.stderr


def test_prompts_must_be_there(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    found = loremesh("tune-engine", "--prompts", str(empty), *ENGINE)
    assert found.returncode == 2
    assert "holds no prompt" in found.stderr
