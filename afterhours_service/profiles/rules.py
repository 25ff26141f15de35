"""Which descriptions are valid, as pure functions."""

import unicodedata

import regex

DESCRIPTION_LENGTH = 500  # characters as people count them
DESCRIPTION_BYTES = (
    20 * DESCRIPTION_LENGTH
)  # in UTF-8: an emoji of a family takes 18, and accents on one letter have no limit

# Invisible, and misleading: overrides of the writing direction. Controls but the line feed are not allowed either.
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# The same as a regular expression, for the API's description. White space is trimmed, so its controls may surround it.
_TRIMMED = r"[\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
_SEEN = r"(\u000d\u000a|[^\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069])*"
DESCRIPTION_PATTERN = rf"^{_TRIMMED}{_SEEN}{_TRIMMED}$"


def tidy(text: str) -> str | None:
    """Return the text trimmed, line ends as line feeds; None for an empty one."""
    return text.replace("\r\n", "\n").strip() or None


def length(text: str) -> int:
    """Return the number of grapheme clusters (Unicode Standard Annex 29): an emoji of a family counts as one."""
    return len(regex.findall(r"\X", text))


def has_control_characters(text: str) -> bool:
    """Return whether the text has control characters other than line feeds, or overrides of the writing direction."""
    return any((unicodedata.category(char) == "Cc" and char != "\n") or char in _OVERRIDES for char in text)
