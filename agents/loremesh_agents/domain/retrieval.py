"""What a caller asks of a retrieval, and the candidate sub-graph that is ranked for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, NewType

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.conversation import NO_CONTEXT, RetrievalContext
from loremesh_agents.domain.filter import EVERYTHING, MetadataFilter
from loremesh_agents.domain.revision import LATEST, Consistency

PassageRef = NewType("PassageRef", int)
"""A store's handle of a passage: stable while the passage lives, never used again, of no meaning to another store."""


class Profile(Enum):
    """How much work a retrieval may take."""

    FAST = "fast"
    BALANCED = "balanced"
    THOROUGH = "thorough"


@dataclass(frozen=True, slots=True)
class RetrievalRequest:
    """A question to find evidence for.

    Attributes:
        question: In natural language.
        collections: Names; empty for all that there are.
        k: Pieces of evidence.
        profile: How much work it may take.
        filter: Only documents that match.
        consistency: How fresh the collections must be.
        context: What earlier turns were about.
    """

    question: str
    collections: tuple[str, ...] = ()
    k: int = 8
    profile: Profile = Profile.BALANCED
    filter: MetadataFilter = EVERYTHING
    consistency: Consistency = LATEST
    context: RetrievalContext = NO_CONTEXT


@dataclass(frozen=True, slots=True)
class TermStatistics:
    """What BM25 needs to know of the collections asked, summed over them.

    Attributes:
        passage_count: Passages.
        mean_length: Mean of their lengths in search terms.
        document_frequencies: Passages that contain a term, by term; 0 for unknown ones.
    """

    passage_count: int
    mean_length: float
    document_frequencies: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PassageFeatures:
    """What the exact scores of n passages are computed from.

    Attributes:
        refs: Handles, in ascending order.
        passage_ids: Names, `collection/passage_id`; ties of the ranking are broken by them.
        lengths: Search terms in each, shape (n,), float32.
        term_frequencies: Of each passage and question term, shape (n, terms), float32.
        vectors: Unit vectors, shape (n, dimension), float32; zero rows where `has_vector` is false.
        has_vector: Shape (n,), bool.
    """

    refs: tuple[PassageRef, ...]
    passage_ids: tuple[str, ...]
    lengths: NDArray[np.float32]
    term_frequencies: NDArray[np.float32]
    vectors: NDArray[np.float32]
    has_vector: NDArray[np.bool_]


class EntityStatistics(NamedTuple):
    """What is known of an entity in the collections asked, summed over them.

    Attributes:
        key: Its key (`lexicon.entity_key`).
        name: As a passage writes it.
        mention_count: Passages that mention it (mdf).
        title_count: Passages that bear it as a title (tdf).
    """

    key: str
    name: str
    mention_count: int
    title_count: int


class TitleEdge(NamedTuple):
    """A passage bears an entity's name."""

    entity: str
    passage: PassageRef
    weight: float


class MentionEdge(NamedTuple):
    """A passage mentions an entity."""

    entity: str
    passage: PassageRef


class ReferenceEdge(NamedTuple):
    """A passage links to a passage.

    Attributes:
        source: The passage with the link.
        target: The first passage of what it links to.
        in_degree: Passages that link to the target.
    """

    source: PassageRef
    target: PassageRef
    in_degree: int


@dataclass(frozen=True, slots=True)
class EntryPoints:
    """Where a question enters the graph.

    Attributes:
        statistics: For the question's terms.
        entities: The known ones among the keys asked, by key.
        titles: Title edges of these entities to readable passages, at most a given number an entity.
        passages: Handles of those of the passages named, as (collection, passage id), that are there and readable.
    """

    statistics: TermStatistics
    entities: Mapping[str, EntityStatistics]
    titles: tuple[TitleEdge, ...]
    passages: Mapping[tuple[str, str], PassageRef]


@dataclass(frozen=True, slots=True)
class Expansion:
    """The neighbourhood of seed passages: what they mention and bear, where that leads, and where they link to.

    Attributes:
        entities: Entities that seeds mention or bear, and those asked for besides, by key.
        seed_mentions: From seeds to entities.
        seed_titles: From seeds to entities.
        titles: From the entities to readable passages that bear their names.
        mentions: From the entities with few enough mentions, by key, to readable passages.
        references: From the seeds to readable passages.
        features: Of all passages reached that were not known to the caller.
    """

    entities: Mapping[str, EntityStatistics]
    seed_mentions: tuple[MentionEdge, ...]
    seed_titles: tuple[TitleEdge, ...]
    titles: tuple[TitleEdge, ...]
    mentions: Mapping[str, Sequence[PassageRef]]
    references: tuple[ReferenceEdge, ...]
    features: PassageFeatures
