"""The darkroom: one upload in, one photo out, in a process of its own that is thrown away afterwards.

`imaging.process` runs this file by its path, in Python's isolated mode and with an empty environment, so it imports
nothing of the package. Upload on stdin; on stdout `+` and the photo, or `-` and why not.

The header of a picture is checked before its pixels are decoded. What a header hides (a thousand compressed comments,
tiles or scans that cost minutes, a bug in a decoder) meets the limits of the process instead of the service.
"""

import resource
import struct
import sys

import pyvips

FIT = 1200
"""Longest side of a photo, in pixels."""

THUMBNAIL = 200
"""Side of the square thumbnail, in pixels."""

MIN_SIDE = 8
"""Shortest side accepted, in pixels: less shows nobody."""

MAX_SIDE = 20_000
"""Longest side accepted, in pixels: a phone's panorama has about 16,000."""

MAX_DECODED_BYTES = 200_000_000
"""Largest picture accepted, in bytes once decoded: 66 megapixels of 8-bit RGB."""

DAMAGED = "The picture is damaged or incomplete."
UNKNOWN = "The file is not a JPEG, PNG, WebP or HEIC picture."

_HEIC_MODES = {
    "L": (1, "uchar", "b-w"),
    "I;16": (1, "ushort", "grey16"),
    "RGB": (3, "uchar", "srgb"),
    "RGBA": (4, "uchar", "srgb"),
}


class Refused(Exception):
    """The upload is not a picture that can be taken; the message is meant for the client."""


def develop(data: bytes) -> tuple[bytes, bytes, int, int]:
    """Return the photo and its thumbnail, both progressive JPEGs, and the photo's width and height in pixels.

    Raises `Refused`.
    """
    _prepare_libvips()
    try:
        reduced = _heic(data) if data[4:8] == b"ftyp" else _jpeg_png_or_webp(data)
        photo = _flat_srgb(reduced).copy_memory()
        side = min(photo.width, photo.height)  # crop first: a strip 1 pixel high would be enlarged as a whole
        thumbnail = photo.smartcrop(side, side, interesting="attention").thumbnail_image(THUMBNAIL, height=THUMBNAIL)
        return _jpeg(photo), _jpeg(thumbnail), photo.width, photo.height
    except pyvips.Error as error:
        raise Refused(DAMAGED) from error


def _prepare_libvips() -> None:
    """Leave only three loaders, which read from memory; keep no results; use one thread for pixels."""
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for kind in ("Jpeg", "Png", "Webp"):
        pyvips.operation_block_set(f"VipsForeignLoad{kind}Buffer", False)
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)


def _jpeg_png_or_webp(data: bytes) -> pyvips.Image:
    try:
        header = pyvips.Image.new_from_buffer(data, "")
    except pyvips.Error as error:
        raise Refused(UNKNOWN) from error
    if header.get_n_pages() > 1:
        raise Refused("Animated pictures are not accepted.")
    progressive = header.get_typeof("jpeg-multiscan") != 0 and header.get("jpeg-multiscan")
    sample_bytes = 2 if progressive or header.format == "ushort" else 1
    _check_size(header.width, header.height, header.bands * sample_bytes)
    # Errors, not warnings: libjpeg warns about what some Samsung phones write and every viewer shows.
    # As an option of the loader: libvips 8.18 ignores the argument `fail_on` of `thumbnail_buffer`.
    return pyvips.Image.thumbnail_buffer(
        data, FIT, height=FIT, size="down", output_profile="srgb", option_string="[fail_on=error]"
    )


def _heic(data: bytes) -> pyvips.Image:
    """Return the picture as the container turns it (`irot`, `imir`); EXIF repeats that and is not asked."""
    import pillow_heif  # noqa: PLC0415 - 40 ms that only a HEIC pays

    if pillow_heif.get_file_mimetype(data) not in ("image/heic", "image/heif"):
        raise Refused(UNKNOWN)
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
    return image.thumbnail_image(FIT, height=FIT, size="down", output_profile="srgb")


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
        photo, thumbnail, width, height = develop(sys.stdin.buffer.read())
        answer = b"+" + struct.pack(">III", width, height, len(photo)) + photo + thumbnail
    except Refused as refusal:
        answer = b"-" + str(refusal).encode()
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
