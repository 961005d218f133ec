"""Conditions on the metadata of documents."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Condition:
    """A key whose value must be one of some.

    Attributes:
        key: Key of the metadata.
        any_of: Allowed values.
    """

    key: str
    any_of: frozenset[str]


@dataclass(frozen=True, slots=True)
class MetadataFilter:
    """Conditions that must all hold."""

    conditions: tuple[Condition, ...] = ()

    def matches(self, metadata: Mapping[str, str]) -> bool:
        """Whether a document with this metadata is kept."""
        return all(metadata.get(condition.key) in condition.any_of for condition in self.conditions)


EVERYTHING = MetadataFilter()
"""Keeps every document."""
