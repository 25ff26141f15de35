"""What a description may be, as pure functions."""

import unicodedata

import regex

DESCRIPTION_LENGTH = 500  # characters as people count them

# What the eye does not see and can be misled by: controls but the line feed, and the overrides of writing direction.
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def tidy(text: str) -> str | None:
    """Return the text trimmed, line ends as line feeds; None for an empty one."""
    return text.replace("\r\n", "\n").strip() or None


def length(text: str) -> int:
    """Return the number of grapheme clusters (Unicode Standard Annex 29): an emoji of a family counts as one."""
    return len(regex.findall(r"\X", text))


def has_control_characters(text: str) -> bool:
    """Tell whether the text has control characters other than line feeds, or overrides of the writing direction."""
    return any((unicodedata.category(char) == "Cc" and char != "\n") or char in _OVERRIDES for char in text)
