"""Ids of vertices, and the values by which an engine tells who may read a passage."""

import hashlib
from collections.abc import Iterable

from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import PassageRef

REGISTER = "register"
INDEX_BITS = 20
"""Of a passage's handle, for its place in the write; the version stands above them."""
MOST_PASSAGES = 1 << INDEX_BITS
"""In one write."""
BUCKETS = 256
"""Of a collection."""
_EVERYBODY = "*"


def claim_id(version: int) -> str:
    """The claim of a version."""
    return f"claim{version}"


def decision_id(version: int) -> str:
    """The decision on a version."""
    return f"decision{version}"


def collection_id(uid: str) -> str:
    """A collection."""
    return _hashed("c", uid)


def change_id(uid: str, revision: int) -> str:
    """A revision of a collection."""
    return _hashed("h", uid, str(revision))


def document_vertex(uid: str, document_id: str) -> str:
    """A document."""
    return _hashed("d", uid, document_id)


def entity_vertex(uid: str, key: str) -> str:
    """An entity."""
    return _hashed("e", uid, key)


def address_vertex(uid: str, address: str) -> str:
    """An address."""
    return _hashed("a", uid, address)


def bucket_id(uid: str, number: int) -> str:
    """A bucket, 0 to 255."""
    return _hashed("b", uid, str(number))


def passage_vertex(ref: int) -> str:
    """A passage."""
    return f"p{ref}"


def vector_id(vector_set: int, ref: int) -> str:
    """A passage's vector of a set."""
    return f"v{vector_set}x{ref}"


def first_ref(version: int) -> int:
    """The handle of the first passage that a version may write; every handle of an earlier version is smaller."""
    return version << INDEX_BITS


def version_of(ref: int) -> int:
    """The version that wrote a passage."""
    return ref >> INDEX_BITS


def refs_of(first: int, count: int) -> list[PassageRef]:
    """The handles of passages written one after the other."""
    return [PassageRef(ref) for ref in range(first, first + count)]


def readers_of(groups: Iterable[str]) -> list[str]:
    """Values of `readers` of a passage that these groups may read; everybody, where there are none."""
    return [f"g:{group}" for group in sorted(groups)] or [_EVERYBODY]


def reading_as(principal: Principal) -> frozenset[str]:
    """Values of `readers`, one of which a passage must have so that the principal may read it."""
    return frozenset({_EVERYBODY, *(f"g:{group}" for group in principal.groups)})


def metadata_value(key: str, value: str) -> str:
    """A value of `metadata`: another pair never has the same."""
    return f"{len(key)}:{key}{value}"


def conditions_of(kept: MetadataFilter) -> list[list[str]]:
    """Values of `metadata`, of each list of which a passage must have one."""
    return [
        [metadata_value(condition.key, value) for value in sorted(condition.any_of)] for condition in kept.conditions
    ]


def _hashed(prefix: str, *parts: str) -> str:
    # Lengths before the parts, so that no two lists of parts are one text.
    text = "".join([f"{len(part)}:{part}" for part in parts])
    return prefix + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
