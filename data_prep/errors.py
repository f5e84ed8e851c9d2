"""Errors of data preparation, each one line that says what is wrong and where to change it.

DataError           the user's data or catalogue file is at fault
├── BrokenMedium    one picture, sound or clip cannot be used: goes to quarantine
└── ShardError      a prepared folder is damaged or of another schema
"""


class DataError(ValueError):
    """A fault in the user's data; its message is the one line shown to the user."""


class BrokenMedium(DataError):
    """One medium cannot be decoded or is empty; its item goes on without it."""


class ShardError(DataError):
    """A shard, index or manifest is missing, damaged or of an unknown schema.

    The message names the path and, where there is one, the key of the sample.
    """


_PLAIN = {
    "Invalid data found when processing input": "not of a format that is known, or damaged",
    "End of file": "it ends earlier than it says",
}
"""What FFmpeg says of what is no medium at all, or of one that is cut off."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing.

    Of an error with a number, as those of FFmpeg and of the system, the words alone: the number and
    the name, which is `'<none>'` of bytes in memory, tell a user nothing.
    """
    words = str(getattr(error, "strerror", None) or error)
    return _PLAIN.get(words) or " ".join(words.split()) or type(error).__name__
