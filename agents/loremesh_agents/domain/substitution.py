"""Questions in which an entity that evidence names stands in place of the one that the question names.

"Who is the mother of the director of Film X?" becomes "Who is the mother of Jane Doe?" once a passage about the film mentions Jane Doe: what answers the
second half of such a question is nearer to the new question than to the old one.
"""

from collections.abc import Iterable, Sequence

from loremesh_agents.domain.linking import LinkedEntity


def substituted(question: str, linked: Iterable[LinkedEntity], names: Sequence[str], *, most: int) -> tuple[str, ...]:
    """The question with each of the names in place of each part of it that names an entity.

    Args:
        question: As it was asked.
        linked: What it names.
        names: What to put there, the likeliest first.
        most: Questions at the most.
    """
    places = sorted({entity.place for entity in linked if entity.place is not None})
    if not places:
        return tuple(f"{question} {name}" for name in names)[:most]
    return tuple(f"{question[:start]}{name}{question[end:]}" for name in names for start, end in places)[:most]
