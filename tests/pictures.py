"""Pictures as members upload them."""

import io
from typing import Any

from PIL import Image

RED, GREEN, BLUE, WHITE = (220, 40, 40), (40, 180, 60), (40, 60, 200), (255, 255, 255)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the picture as a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def plain(side: int = 64, file_format: str = "PNG") -> bytes:
    """Return a square of one colour."""
    return encode(Image.new("RGB", (side, side), "teal"), file_format)


def quarters(width: int, height: int) -> Image.Image:
    """Red, green, blue, white: clockwise from the top left, so that every turn and mirroring shows."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (width // 2, height // 2, width, height))
    return image
