"""What tests of this repository share: where it is, what is in it, what pyproject.toml says."""

import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "generated" / "python"


@cache
def files() -> tuple[Path, ...]:
    """All files that are committed, or would be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return tuple(path for name in sorted(set(names)) if name and (path := ROOT / name).is_file())


def texts(suffix: str = "") -> list[tuple[str, str]]:
    """Relative path and content of those that are text and end like this."""
    found: list[tuple[str, str]] = []
    for path in files():
        if path.name.endswith(suffix):
            data = path.read_bytes()
            if b"\0" not in data:
                found.append((path.relative_to(ROOT).as_posix(), data.decode()))
    return found


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
