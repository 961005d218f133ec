"""Who asks: decides which documents may be read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The person or program on whose behalf a call is made.

    Attributes:
        subject: Stable id of the person or program; empty for an anonymous caller.
        groups: Groups that the subject belongs to. A document with readers is visible to members of one of them.
    """

    subject: str = ""
    groups: frozenset[str] = frozenset()


ANONYMOUS = Principal()
"""A caller that has not said who it is: reads public documents only."""
