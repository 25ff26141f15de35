"""The gender a member is likely to seek, and which age ranges are valid, as pure functions."""

GENDERS = ("Any", "Male", "Female", "Non-binary")
ORIENTATIONS = ("Straight", "Gay", "Bisexual", "Pansexual", "Queer", "Other")
MIN_AGE, MAX_AGE = 18, 99
MAX_DISTANCE_KM = 200
DEFAULTS = {"max_distance_km": 10, "min_age": MIN_AGE, "max_age": MAX_AGE}

_SAME = {"gay", "lesbian", "homosexual"}
_OTHER = {"straight", "heterosexual"}
_OPPOSITE = {"male": "Female", "female": "Male"}
_NAMES = {"male": "Male", "female": "Female"}


def likely_seeking(gender: str | None, sexual_preference: str | None) -> str:
    """Return the gender a member is likely to seek, from their main profile; "Any" if that says too little."""
    own, preference = (gender or "").strip().lower(), (sexual_preference or "").strip().lower()
    if preference in _OTHER:
        return _OPPOSITE.get(own, "Any")
    if preference in _SAME:
        return _NAMES.get(own, "Any")
    return "Any"


def ages_fit(min_age: int | None, max_age: int | None) -> bool:
    """Return whether an age range has anyone in it; None stands for the default."""
    return (MIN_AGE if min_age is None else min_age) <= (MAX_AGE if max_age is None else max_age)
