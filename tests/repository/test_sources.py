"""What holds for every file that is committed."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.repository.repository import ROOT, files, pyproject, texts

_PATH_OF_A_MACHINE = re.compile(r"(?<![\w.~$}*-])/(?:work|root|farm|home/\w+|Users/\w+)/")
_ADDRESS_OF_A_REGISTRY = re.compile(
    r"--(?:extra-)?index-url[ =]|--find-links[ =]|--registry[ =]|\bGOPROXY=|\"resolved\": "
)
_HOST = re.compile(r"https?://(?:[^@/\s]*@)?([^/\s,|\"']+)")
_SWITCHED_OFF = re.compile(r"#\s*(noqa|type:\s*ignore|pyright:\s*ignore)(.*)$", re.MULTILINE)
_WITH_REASON = re.compile(r"(?::\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*|\[[\w-]+(?:,\s*[\w-]+)*\])\s+[#-]\s*\w")


def _registries_of_this_machine() -> Iterator[str]:
    commands = (
        [sys.executable, "-m", "pip", "config", "list"],
        ["npm", "config", "get", "registry"],
        ["go", "env", "GOPROXY"],
    )
    for command in commands:
        if shutil.which(command[0]):
            said = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout
            yield from _HOST.findall(said)


def test_no_file_names_a_path_of_a_machine() -> None:
    assert [name for name, text in texts() if _PATH_OF_A_MACHINE.search(text)] == []


def test_no_file_names_a_package_registry() -> None:
    hosts = [re.compile(rf"(?<![\w.-]){re.escape(host)}(?![\w.-])") for host in set(_registries_of_this_machine())]
    patterns = [_ADDRESS_OF_A_REGISTRY, *hosts]
    assert [name for name, text in texts() if any(pattern.search(text) for pattern in patterns)] == []


@pytest.mark.parametrize("table", ["ignore", "per-file-ignores"])
def test_every_ruff_rule_that_is_switched_off_says_why(table: str) -> None:
    assert pyproject()["tool"]["ruff"]["lint"]["select"] == ["ALL"]
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    starts = {"ignore": "ignore = [", "per-file-ignores": "[tool.ruff.lint.per-file-ignores]"}
    start = lines.index(starts[table]) + 1
    end = next(number for number in range(start, len(lines)) if lines[number] in {"", "]"})
    assert end > start
    assert [line for line in lines[start:end] if not re.search(r"[\],] # \S+", line)] == []


def test_every_line_that_switches_a_rule_off_names_it_and_says_why() -> None:
    silent = [
        f"{name}: {match[0]}"
        for name, text in texts(".py")
        if name.startswith(("agents/", "bench/", "tools/"))
        for match in _SWITCHED_OFF.finditer(text)
        if not _WITH_REASON.match(match[2])
    ]
    assert silent == []


def test_source_roots_are_no_packages() -> None:
    # With such a file the folder shadows other packages of that name, or cuts a namespace package off from its other parts.
    roots = ["agents", "generated", "generated/python", "generated/python/loremesh", "generated/python/buf", "tools"]
    assert [root for root in roots if (ROOT / root / "__init__.py").exists()] == []


def test_every_make_target_is_documented_and_phony() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][\w-]*):(?!=)(.*)$", text, re.MULTILINE)
    assert [name for name, rest in targets if not re.search(r" ## .+\.$", rest)] == []
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony.split() == [name for name, _ in targets]


def test_scripts_can_be_run() -> None:
    scripts = [path for path in files() if path.read_bytes().startswith(b"#!")]
    assert [path.name for path in scripts if not path.stat().st_mode & 0o100] == []
