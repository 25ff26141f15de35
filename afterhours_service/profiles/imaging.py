"""Photos: untrusted bytes in, a clean JPEG and its thumbnail out. No Flask, no files, no network.

Only the pixels of an upload are kept: both results are re-encoded, without metadata.
The work is done by `darkroom.py` in a process of its own, so that a hostile picture costs one process at most
`CPU_SECONDS` and `MEMORY_BYTES`, and a crash in a decoder costs nothing else. Safe with threads and after a fork.
"""

import logging
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 10
"""Processor time one picture may take."""

WALL_SECONDS = 20
"""Time one picture may take by the clock."""

MEMORY_BYTES = 1_100_000_000
"""Address space one picture may take (on Linux): a progressive JPEG of 66 megapixels needs 890 MB."""

_DARKROOM = Path(__file__).with_name("darkroom.py")
_PHOTO_HEADER = struct.Struct(">QIII")

_one_at_a_time = threading.Lock()
_log = logging.getLogger(__name__)


class InvalidImage(ValueError):
    """The upload is not an acceptable picture; the message is for the client."""


@dataclass(frozen=True)
class Photo:
    """Two progressive sRGB JPEGs without metadata: `image` of `width` by `height` pixels, and a square `thumbnail`.

    phash: what the picture looks like, in 16 hexadecimal digits (`darkroom.perceptual_hash`).
    """

    image: bytes
    thumbnail: bytes
    width: int
    height: int
    phash: str


def process(data: bytes) -> Photo:
    """Make a photo of an uploaded JPEG, PNG, WebP or HEIC, recognised by its content.

    The image is upright, inside 1200 by 1200 pixels (never enlarged), and white where it was transparent.
    The thumbnail is 200 by 200 pixels, enlarged if need be, cropped to what draws attention.

    One picture at a time per process: another thread waits its turn.

    Raises `InvalidImage` for anything else: other formats, animations, damaged files, pictures too small or too large,
    or beyond the limits on time and memory.
    """
    # Python isolated from its surroundings, and none of the service's secrets in the environment.
    # The threshold keeps libvips from putting pixels into a temporary file.
    command = [sys.executable, "-I", str(_DARKROOM), str(CPU_SECONDS), str(MEMORY_BYTES)]
    environment = {"VIPS_DISC_THRESHOLD": str(MEMORY_BYTES)}
    try:
        with _one_at_a_time:
            done = subprocess.run(  # noqa: S603
                command, input=data, env=environment, capture_output=True, timeout=WALL_SECONDS, check=False
            )
    except subprocess.TimeoutExpired as error:
        raise _too_costly(data, f"still busy after {WALL_SECONDS} s") from error
    if done.returncode < 0:
        raise _too_costly(data, f"ended by {signal.Signals(-done.returncode).name}")
    if done.returncode > 0:
        raise RuntimeError(f"the darkroom failed: {done.stderr.decode(errors='replace')}")
    verdict, answer = done.stdout[:1], done.stdout[1:]
    if verdict == b"-":
        raise InvalidImage(answer.decode())
    phash, width, height, length = _PHOTO_HEADER.unpack_from(answer)
    jpegs = answer[_PHOTO_HEADER.size :]
    return Photo(jpegs[:length], jpegs[length:], width, height, f"{phash:016x}")


def _too_costly(data: bytes, what_happened: str) -> InvalidImage:
    _log.warning("a picture of %d bytes: the darkroom was %s", len(data), what_happened)
    return InvalidImage("The picture takes too much time or memory to read.")
