"""What can go wrong, by whose hand, and the exit code that says so.

An error message is a sentence: what was wrong, where (file, key, value), what would be right.
"""


class CdbenchError(Exception):
    """A problem that the harness can explain. Printed as one sentence, never as a traceback."""

    exit_code = 1


class RunFailed(CdbenchError):
    """A run came to no result; its record says why."""


class UserError(CdbenchError):
    """Wrong input: an unknown name, a bad value, a damaged file."""

    exit_code = 2


class AnswerBad(CdbenchError):
    """The command finished, and its answer is no: not reproduced, check failed."""

    exit_code = 3


class EnvironmentLacks(CdbenchError):
    """The machine lacks something: a GPU, weights, disk space, permission."""

    exit_code = 4


def first_line(error: BaseException) -> str:
    """The first line of what somebody else's error says; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


INTERRUPTED = 130
