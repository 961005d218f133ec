"""Servers as jars from Maven's registry, kept between runs."""

import fcntl
import os
import subprocess
from pathlib import Path

_POMS = Path(__file__).parent / "poms"
CACHE = Path(os.environ.get("LOREMESH_TEST_ENGINE_CACHE", ".tools/engines")).absolute()
"""Where servers are kept; safe to delete."""


def jars(name: str) -> Path:
    """The folder with all jars of `poms/{name}.xml`, fetched on the first call."""
    folder = CACHE / name
    complete = folder / ".complete"
    pom = _POMS / f"{name}.xml"
    folder.mkdir(parents=True, exist_ok=True)
    # Nodes that start side by side ask for the same jars.
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists() or complete.read_text(encoding="utf-8") != pom.read_text(encoding="utf-8"):
            subprocess.run(
                [
                    *("mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"),
                    *("-DincludeScope=runtime", f"-DoutputDirectory={folder}"),
                ],
                check=True,
                stdin=subprocess.DEVNULL,
            )
            complete.write_text(pom.read_text(encoding="utf-8"), encoding="utf-8")
    return folder
