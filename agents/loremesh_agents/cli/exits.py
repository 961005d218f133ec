"""Exit codes, and errors as sentences that name the mend."""

import click

OK = 0
FAILED = 1
USAGE = 2
UNAVAILABLE = 3
NOT_FOUND = 4
PARTLY = 5
NO_ANSWER = 6

EXIT_CODES = {
    OK: "done",
    FAILED: "failed; the message says why",
    USAGE: "wrong options, arguments or settings",
    UNAVAILABLE: "an agent or a store does not answer, or not in time",
    NOT_FOUND: "a collection does not exist",
    PARTLY: "some documents failed; they are listed",
    NO_ANSWER: "the documents do not answer the question",
    130: "interrupted",
}
"""What the command's exit codes mean."""


class CommandError(click.ClickException):
    """An error for a person, with the exit code for a script."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
