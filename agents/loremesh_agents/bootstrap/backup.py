"""Backup and restore of the embedded stores, beside agents that go on.

A backup is a folder: the graph as one file, the vector index's bases, and last of all a manifest with the size and checksum of each file. The bases
are copied before the graph, so that none is ahead of it; one that was replaced meanwhile, or lacks, costs time after a restore, never a result.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.settings import StoreSettings
from loremesh_agents.domain.errors import ConfigurationError, LoremeshError, StorageFull

FORMAT = 1
MANIFEST = "backup.json"
_GRAPH = "graph.db"
_VECTORS = "vectors"
_UNFINISHED = ".restoring"
_CHUNK = 1024 * 1024

Progress = Callable[[str, int, int], None]
"""Is told what is under way, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds.

    Attributes:
        created: When it was begun, in seconds since 1970.
        collections: The revisions of the collections, by name.
        files: Sizes of the files in bytes, by their paths in the folder.
    """

    created: float
    collections: Mapping[str, int]
    files: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the embedded stores are.

    Attributes:
        graph: The database.
        vectors: Folder of the vector index; None where the index is elsewhere, or in memory.
    """

    graph: Path
    vectors: Path | None


def back_up(stores: StoreSettings, folder: Path, progress: Progress) -> BackupReport:
    """Copies the stores as they are now; agents may go on writing.

    Args:
        stores: Where they are.
        folder: Where to; made, and empty.
        progress: Is told how far it is.

    Raises:
        ConfigurationError: The stores are elsewhere or not there, or the folder is not empty.
        LoremeshError: A file cannot be read or written.
    """
    from loremesh_agents.adapters.graph.sqlite.backup import copy_database

    places = _places(stores)
    if not places.graph.is_file():
        raise ConfigurationError(f"there is no graph store {places.graph} to back up")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is not an empty folder: a backup needs one of its own")
    created = time.time()
    with _files(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if places.vectors is not None:
            _copy_bases(places.vectors, folder / _VECTORS, progress)
        schema, revisions = copy_database(
            places.graph, folder / _GRAPH, lambda done, total: progress("graph", done, total)
        )
        files = {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "build": version_of("loremesh"),
            "created": created,
            "graph_schema": schema,
            "collections": {
                name: {"uid": state.collection_uid, "revision": state.revision} for name, state in revisions.items()
            },
            "files": files,
        }
        manifest["sha256"] = _manifest_checksum(manifest)
        for name in files:
            _sync(folder / name)
        draft = folder / f"{MANIFEST}{_UNFINISHED}"
        draft.write_text(json.dumps(manifest, indent=1))
        _sync(draft)
        draft.replace(folder / MANIFEST)
        _sync(folder)
    return _report(manifest)


def restore(stores: StoreSettings, folder: Path, progress: Progress) -> BackupReport:
    """Puts a backup where the settings want the stores. No agent may run on them.

    Args:
        stores: Where to; nothing may be there.
        folder: The backup.
        progress: Is told how far it is.

    Raises:
        ConfigurationError: The stores are elsewhere or there already, or the folder holds no backup, a damaged one or one of a newer build.
        LoremeshError: A file cannot be read or written.
    """
    from loremesh_agents.adapters.graph.sqlite.backup import require_sound

    places = _places(stores)
    _require_nothing(places)
    manifest = _read_manifest(folder)
    restored: dict[Path, Path] = {}
    with _files(places.graph.parent):
        for name, expected in manifest["files"].items():
            target = places.graph if name == _GRAPH else _base(places, name)
            if target is not None:
                draft = target.with_name(f"{target.name}{_UNFINISHED}")
                draft.parent.mkdir(parents=True, exist_ok=True)
                _copy_checked(folder, name, draft, expected, progress)
                restored[draft] = target
        graph = next(draft for draft, target in restored.items() if target == places.graph)
        try:
            require_sound(graph)
        except LoremeshError as error:
            raise _damaged(folder, f"{_GRAPH} is no sound database") from error
        # First the graph: until it is there, nothing is, and then nothing is lacking, for bases cost only time.
        graph.replace(places.graph)
        _sync(places.graph.parent)
        for draft, target in restored.items():
            if draft != graph:
                draft.replace(target)
    return _report(manifest)


def _places(stores: StoreSettings) -> _Places:
    url = stores.graph or f"sqlite://{(stores.data / _GRAPH).absolute()}"
    if urlsplit(url).scheme != "sqlite":
        raise ConfigurationError(
            f"the setting stores.graph is {url!r}: 'loremesh backup' and 'restore' are for sqlite:///path;"
            " docs/engines.md says how other engines are backed up"
        )
    vectors = urlsplit(backends.vectors_url(stores))
    return _Places(Path(urlsplit(url).path), Path(vectors.path) if vectors.scheme == "faiss" else None)


def _require_nothing(places: _Places) -> None:
    beside = [places.graph.with_name(f"{places.graph.name}{end}") for end in ("", "-wal", "-shm")]
    for path in [*beside, *([places.vectors] if places.vectors is not None else [])]:
        unfinished = path.is_dir() and all(entry.name.endswith(_UNFINISHED) for entry in path.iterdir())
        if path.exists() and not unfinished:
            raise ConfigurationError(f"{path} is there already: a backup is restored where no store is")


def _base(places: _Places, name: str) -> Path | None:
    """Where a base goes; None where the settings want none."""
    return places.vectors / Path(name).name if places.vectors is not None else None


def _copy_bases(source: Path, target: Path, progress: Progress) -> None:
    """Copies the bases of a vector index that is kept up meanwhile: each file as it is at one moment."""
    paths = sorted(path for path in source.glob("*") if path.suffix in {".faiss", ".json"} and path.is_file())
    if paths:
        target.mkdir()
    for done, path in enumerate(paths, 1):
        try:
            shutil.copyfile(path, target / path.name)
        except FileNotFoundError:
            # Removed with its collection, or replaced by none.
            (target / path.name).unlink(missing_ok=True)
        progress(_VECTORS, done, len(paths))


def _read_manifest(folder: Path) -> dict[str, Any]:
    from loremesh_agents.adapters.graph.sqlite.schema import VERSION

    path = folder / MANIFEST
    try:
        found: object = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"{folder} holds no whole backup: there is no {MANIFEST} in it") from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read") from error
    if not isinstance(found, dict):
        raise _damaged(folder, f"{MANIFEST} is no object")
    manifest = cast("dict[str, Any]", found)
    newest = {"format": FORMAT, "graph_schema": VERSION}
    for name, known in newest.items():
        value = manifest.get(name)
        if not isinstance(value, int):
            raise _damaged(folder, f"{MANIFEST} has no {name}")
        if value > known:
            raise ConfigurationError(
                f"the backup {folder} is newer than this build: its {name} is {value}, this build knows {known};"
                f" restore it with loremesh {manifest.get('build')}"
            )
    if manifest.get("sha256") != _manifest_checksum(manifest):
        raise _damaged(folder, f"the checksum of {MANIFEST} is wrong")
    return manifest


def _manifest_checksum(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _copy_checked(folder: Path, name: str, target: Path, expected: Mapping[str, Any], progress: Progress) -> None:
    digest = hashlib.sha256()
    size = 0
    try:
        source = (folder / name).open("rb")
    except FileNotFoundError:
        raise _damaged(folder, f"{name} is missing") from None
    with source, target.open("wb") as copy:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            copy.write(chunk)
            progress(name, size, expected["size"])
        copy.flush()
        os.fsync(copy.fileno())
    if size != expected["size"]:
        raise _damaged(folder, f"{name} has {size} bytes instead of {expected['size']}")
    if digest.hexdigest() != expected["sha256"]:
        raise _damaged(folder, f"the checksum of {name} is wrong")


def _damaged(folder: Path, cause: str) -> ConfigurationError:
    return ConfigurationError(f"the backup {folder} is damaged: {cause}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _files(folder: Path) -> Generator[None]:
    """Turns errors of files into ours."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull(str(folder)) from error
        raise ConfigurationError(f"{error.filename or folder}: {error.strerror}") from error


def _report(manifest: Mapping[str, Any]) -> BackupReport:
    return BackupReport(
        manifest["created"],
        {name: state["revision"] for name, state in manifest["collections"].items()},
        {name: entry["size"] for name, entry in manifest["files"].items()},
    )
