"""The darkroom: turns one upload into one photo, in a process of its own that ends afterwards.

`imaging.process` runs this file by its path, in Python's isolated mode and with an empty environment, so it imports
nothing of the package. Reads the upload from stdin; writes `+` and the photo to stdout, or `-` and why it was refused.

A picture's header is checked before its pixels are decoded. What a header hides (a thousand compressed comments, tiles
or scans that take minutes, a bug in a decoder) hits the limits of this process, not the service.
"""

import functools
import itertools
import logging
import math
import operator
import re
import resource
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pyvips

FIT = 1200
"""Longest side of a photo, in pixels."""

THUMBNAIL = 200
"""Side of the square thumbnail, in pixels."""

MIN_SIDE = 8
"""Shortest side accepted, in pixels: a smaller picture shows nobody."""

MAX_SIDE = 20_000
"""Longest side accepted, in pixels: a phone's panorama has about 16,000."""

MAX_DECODED_BYTES = 200_000_000
"""Largest picture accepted, in bytes once decoded: 66 megapixels of 8-bit RGB."""

DAMAGED = "The picture is damaged or incomplete."
NO_HEIC = "HEIC pictures are not accepted here."
UNKNOWN = "The file is not a JPEG, PNG, WebP or HEIC picture."

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis"}
_HEIC_MODES = {
    "L": (1, "uchar", "b-w"),
    "I;16": (1, "ushort", "grey16"),
    "RGB": (3, "uchar", "srgb"),
    "RGBA": (4, "uchar", "srgb"),
    "RGBa": (4, "uchar", "srgb"),  # premultiplied alpha
}

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # a marker, but for restarts and stuffed bytes

_SAMPLE = 32
_COSINES = [[math.cos((2 * k + 1) / (2 * _SAMPLE) * wave * math.pi) for k in range(_SAMPLE)] for wave in range(9)]


class Refused(Exception):
    """The upload is not an acceptable picture; the message is for the client."""


def develop(data: bytes) -> tuple[bytes, bytes, int, int, int]:
    """Return the photo and its thumbnail, both progressive JPEGs, the photo's width and height, and its hash.

    Raises `Refused`.
    """
    _prepare_libvips()
    try:
        reduced = _heic(data) if data[4:8] == b"ftyp" else _jpeg_png_or_webp(data)
        photo = _flat_srgb(reduced).copy_memory()
        side = min(photo.width, photo.height)  # crop first: a strip 1 pixel high would be enlarged as a whole
        thumbnail = photo.smartcrop(side, side, interesting="attention").thumbnail_image(THUMBNAIL, height=THUMBNAIL)
        return _jpeg(photo), _jpeg(thumbnail), photo.width, photo.height, perceptual_hash(_grey_sample(data, reduced))
    except pyvips.Error as error:
        raise Refused(DAMAGED) from error


def perceptual_hash(sample: Sequence[int]) -> int:
    """Return the hash that the npm package sharp-phash makes of 32 by 32 grey pixels, row by row: 64 bits.

    A bit for each of the 8 by 8 lowest frequencies of a cosine transform, constants left out: is it above their mean?
    """
    frequencies = []
    for across, down in itertools.product(_COSINES[1:], repeat=2):
        # Added up in sharp-phash's order: of a gradient there is little more than what rounding leaves.
        total = 0.0
        for x, y in itertools.product(range(_SAMPLE), repeat=2):
            total += across[x] * down[y] * sample[_SAMPLE * y + x]
        frequencies.append(total / 4)
    mean = functools.reduce(operator.add, frequencies) / len(frequencies)
    return int("".join("1" if frequency > mean else "0" for frequency in frequencies), 2)


def _grey_sample(data: bytes, reduced: pyvips.Image) -> bytes:
    """Return 32 by 32 grey pixels as sharp makes them: read as small as its loader can, alpha not laid on a background.

    reduced: the same picture, for the formats that have no smaller way.
    """
    if data.startswith(_JPEG_START) or data[8:12] == b"WEBP":
        header = pyvips.Image.new_from_buffer(data, "")
        shrink = max(min(header.width, header.height) / _SAMPLE, 1)
        if data.startswith(_JPEG_START):
            factor = next(factor for factor in (8, 4, 2, 1) if factor <= shrink)
            options = {"shrink": factor // 2 if 1 < factor == int(shrink) else factor}
        else:
            options = {"scale": 1 / shrink}
        reduced = pyvips.Image.new_from_buffer(data, "", **options).autorot()
        if reduced.get_typeof("icc-profile-data"):
            with suppress(pyvips.Error):  # an invalid profile
                reduced = reduced.icc_transform("srgb", embedded=True)
    grey = reduced.colourspace("b-w").thumbnail_image(_SAMPLE, height=_SAMPLE, size="force")[0]
    return bytes(grey.cast("uchar").write_to_memory())


def _prepare_libvips() -> None:
    """Leave only three loaders, which read from memory; keep no results; use one thread for pixels."""
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for kind in ("Jpeg", "Png", "Webp"):
        pyvips.operation_block_set(f"VipsForeignLoad{kind}Buffer", False)
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)


def _jpeg_png_or_webp(data: bytes) -> pyvips.Image:
    lacks_its_end = data.startswith(_JPEG_START) and _lacks_only_its_end(data)
    if lacks_its_end:
        data += _JPEG_END
    try:
        header = pyvips.Image.new_from_buffer(data, "")
    except pyvips.Error as error:
        raise Refused(UNKNOWN) from error
    if header.get_n_pages() > 1:
        raise Refused("Animated pictures are not accepted.")
    _check_size(header.width, header.height, header.bands * (2 if header.format == "ushort" else 1))
    # Errors, not warnings: libjpeg warns about what some Samsung phones write and every viewer shows.
    # As an option of the loader: libvips 8.18 ignores the argument `fail_on` of `thumbnail_buffer`.
    with _warnings() as warnings:
        reduced = pyvips.Image.thumbnail_buffer(
            data, FIT, height=FIT, size="down", output_profile="srgb", option_string="[fail_on=error]"
        ).copy_memory()
    if lacks_its_end and any("premature end of data" in warning for warning in warnings):
        raise Refused(DAMAGED)
    return reduced


class _Listener(logging.Handler):
    """Collects log messages."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Yield the warnings of libvips; those about a picture come once it has been read."""
    listener = _Listener()
    logging.getLogger("pyvips").addHandler(listener)
    try:
        yield listener.texts
    finally:
        logging.getLogger("pyvips").removeHandler(listener)


def _lacks_only_its_end(jpeg: bytes) -> bool:
    """Return whether a JPEG has every scan of every component, and then no end marker; no pixel is decoded."""
    # What is missing of each component: per coefficient, the bits that no scan has brought yet.
    missing: dict[int, list[int]] = {}
    at = len(_JPEG_START)
    while (marker := _AFTER_SCAN.search(jpeg, at)) and marker[0] != _JPEG_END:
        kind, at = marker[0][1], marker.end()
        length = int.from_bytes(jpeg[at : at + 2], "big")
        segment = jpeg[at + 2 : at + length]
        if length < 2 or len(segment) != length - 2:
            return False
        at += length
        if kind in (0xC0, 0xC1, 0xC2) and len(segment) >= 6:
            missing |= {component: [14] * 64 for component in segment[6::3]}
        if kind == 0xDA and len(segment) >= 6:
            first, last, bits = segment[-3:]
            for component in segment[1:-3:2]:
                left = missing.get(component, [14] * 64)
                left[first : last + 1] = [bits & 15] * (last + 1 - first)
    return marker is None and bool(missing) and not any(map(any, missing.values()))


def _heic(data: bytes) -> pyvips.Image:
    """Return the picture as the container turns it (`irot`, `imir`); EXIF repeats that and is not asked."""
    major = data[8:12]
    brands = {major, *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 1024), 4))}
    if major != b"mif1" and not brands & _HEIC_BRANDS:
        raise Refused(UNKNOWN)
    try:
        import pillow_heif  # noqa: PLC0415 - 40 ms that only a HEIC pays, and an extra
    except ImportError as error:
        raise Refused(NO_HEIC) from error
    pillow_heif.options.DECODE_THREADS = 1
    try:
        heif = pillow_heif.open_heif(data)
        bands, sample, interpretation = _HEIC_MODES[heif.mode]
        width, height = heif.size
        _check_size(width, height, bands * (2 if sample == "ushort" else 1))
        image = pyvips.Image.new_from_memory(heif.data, width, height, bands, sample)
    except (ValueError, EOFError, SyntaxError, RuntimeError, OSError, LookupError) as error:
        raise Refused(DAMAGED) from error
    image = image.copy(interpretation=interpretation)
    if profile := heif.info.get("icc_profile"):
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    if heif.mode == "RGBa":
        image = image.unpremultiply().cast("uchar")
    return image.thumbnail_image(FIT, height=FIT, size="down", output_profile="srgb").copy_memory()


def _check_size(width: int, height: int, pixel_bytes: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise Refused(f"The picture is too small: {width} by {height} pixels.")
    if max(width, height) > MAX_SIDE or width * height * pixel_bytes > MAX_DECODED_BYTES:
        raise Refused(f"The picture is too large: {width} by {height} pixels.")


def _flat_srgb(image: pyvips.Image) -> pyvips.Image:
    image = image.colourspace("srgb")
    return image.flatten(background=255) if image.hasalpha() else image


def _jpeg(image: pyvips.Image) -> bytes:
    jpeg: bytes = image.jpegsave_buffer(Q=85, interlace=True, keep="none")
    return jpeg


def _limit(what: int, amount: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def main(seconds: int, memory: int) -> None:
    """Develop stdin to stdout within so many seconds of processor time and bytes of address space, writing no file."""
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, memory)
    try:
        photo, thumbnail, width, height, phash = develop(sys.stdin.buffer.read())
        answer = b"+" + struct.pack(">QIII", phash, width, height, len(photo)) + photo + thumbnail
    except Refused as refusal:
        answer = b"-" + str(refusal).encode()
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
