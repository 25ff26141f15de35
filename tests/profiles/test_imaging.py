import contextlib
import io
import logging
import random
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
import pyvips
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from afterhours_service.profiles import darkroom, imaging
from afterhours_service.profiles.darkroom import DAMAGED, UNKNOWN, Refused, develop
from afterhours_service.profiles.imaging import InvalidImage, process
from tests.pictures import BLUE, GREEN, RED, WHITE, encode, quarters

pillow_heif.register_heif_opener()

FORMATS = ["JPEG", "PNG", "WEBP", "HEIF"]
LOSSLESS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "HEIF": {"quality": 95, "chroma": 444, "enc_params": {"preset": "ultrafast"}},
}


def decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def drawing(width: int, height: int, seed: int) -> Image.Image:
    """Discs of every size and shade, the same for a seed wherever they are drawn."""
    chance = random.Random(seed)
    image = Image.new("RGB", (width, height), (90, 110, 130))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, radius = chance.randrange(width), chance.randrange(height), chance.randrange(10, 90)
        colour = (chance.randrange(256), chance.randrange(256), chance.randrange(256))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def translucent(image: Image.Image) -> Image.Image:
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def close(image: Image.Image, x: float, y: float, colour: tuple[int, int, int], tolerance: int = 8) -> bool:
    """Return whether the pixel at these fractions of the sides has about this colour."""
    found = image.getpixel((int(image.width * x), int(image.height * y)))
    assert isinstance(found, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(found, colour, strict=True))


def markers(jpeg: bytes) -> set[int]:
    """Return the markers of a JPEG, other than those inside the compressed data."""
    found, at = set(), 2
    while jpeg[at + 1] != 0xD9:
        marker = jpeg[at + 1]
        found.add(marker)
        at += 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        if marker == 0xDA:
            while jpeg[at] != 0xFF or jpeg[at + 1] in (0, *range(0xD0, 0xD8)):
                at += 1
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *extra: bytes, depth: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(min((width * 3 + 1) * height, 100_000))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


# What is taken


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_becomes_a_progressive_jpeg_and_a_square_thumbnail(file_format: str) -> None:
    image, thumbnail, width, height, _ = develop(encode(quarters(1300, 650), file_format, **LOSSLESS[file_format]))

    photo, small = decode(image), decode(thumbnail)
    assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (1200, 600))
    assert (width, height) == photo.size
    assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (200, 200))
    assert 0xC2 in markers(image)
    assert 0xC2 in markers(thumbnail)
    quality_85 = decode(encode(quarters(16, 16), "JPEG", quality=85))
    assert photo.quantization == quality_85.quantization  # type: ignore[attr-defined]
    assert close(photo, 0.1, 0.1, RED)
    assert close(photo, 0.9, 0.1, GREEN)
    assert close(photo, 0.9, 0.9, BLUE)
    assert close(photo, 0.1, 0.9, WHITE)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1200, 1200), (1200, 1200)),
        ((640, 480), (640, 480)),
        ((2000, 3000), (800, 1200)),
        ((1201, 10), (1200, 10)),
        ((8, 8), (8, 8)),
        ((20_000, 8), (1200, 1)),
    ],
)
def test_a_photo_fits_and_is_never_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image, thumbnail, width, height, _ = develop(encode(Image.new("RGB", size, RED), "PNG"))

    assert (width, height) == expected == decode(image).size
    assert decode(thumbnail).size == (200, 200)


def test_the_thumbnail_is_cropped_to_where_the_eye_goes() -> None:
    portrait = Image.new("RGB", (600, 1200), (120, 120, 120))
    portrait.paste((224, 172, 140), (150, 60, 450, 360))  # skin, above the middle square

    assert close(decode(develop(encode(portrait, "JPEG"))[1]), 0.5, 0.5, (224, 172, 140), tolerance=16)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(file_format: str, orientation: int) -> None:
    lying = quarters(400, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # pillow_heif writes the orientation as a phone does: as `irot` and `imir` boxes, and again in the EXIF.
    data = encode(lying, file_format, exif=exif.tobytes(), **LOSSLESS[file_format])

    photo = decode(develop(data)[0])

    lying.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(lying)
    assert photo.size == upright.size
    for x, y in ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)):
        colour = upright.getpixel((int(upright.width * x), int(upright.height * y)))
        assert isinstance(colour, tuple)
        assert close(photo, x, y, (colour[0], colour[1], colour[2]))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_wide_gamut_picture_keeps_its_colours(file_format: str) -> None:
    srgb = pyvips.Image.black(64, 64, bands=3).linear(1, [200, 60, 60], uchar=True).copy(interpretation="srgb")
    wide = srgb.icc_transform("p3", input_profile="srgb", embedded=False)
    pixels = Image.frombytes("RGB", (64, 64), wide.write_to_memory())
    assert not close(pixels, 0.5, 0.5, (200, 60, 60))

    data = encode(pixels, file_format, icc_profile=wide.get("icc-profile-data"), **LOSSLESS[file_format])

    assert close(decode(develop(data)[0]), 0.5, 0.5, (200, 60, 60), tolerance=5)


def sixteen_bits() -> bytes:
    deep = (pyvips.Image.black(64, 64, bands=3) + [shade * 257 for shade in RED]).cast("ushort")
    data: bytes = deep.copy(interpretation="rgb16").pngsave_buffer()
    return data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"), (232, 30, 42), id="CMYK"),
        pytest.param(encode(Image.new("CMYK", (64, 64), (0, 0, 0, 255)), "JPEG"), (40, 35, 42), id="CMYK black"),
        pytest.param(encode(Image.new("L", (64, 64), 120), "JPEG"), (120, 120, 120), id="grey"),
        pytest.param(encode(Image.new("I;16", (64, 64), 120 * 257), "PNG"), (120, 120, 120), id="16-bit grey"),
        pytest.param(sixteen_bits(), RED, id="16-bit RGB"),
        pytest.param(encode(Image.new("1", (64, 64), 1), "PNG"), WHITE, id="1 bit"),
        pytest.param(encode(Image.new("P", (64, 64), 0), "PNG", transparency=0), WHITE, id="transparent palette"),
        pytest.param(encode(Image.new("LA", (64, 64), (55, 51)), "PNG"), (215, 215, 215), id="grey with alpha"),
        pytest.param(encode(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "PNG"), WHITE, id="transparent PNG"),
        pytest.param(
            encode(Image.new("RGBA", (64, 64), (55, 0, 0, 51)), "WEBP", lossless=True),
            (215, 204, 204),
            id="translucent WebP",
        ),
        pytest.param(encode(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "HEIF"), WHITE, id="transparent HEIC"),
        pytest.param(encode(Image.new("L", (64, 64), 120), "HEIF"), (120, 120, 120), id="grey HEIC"),
        pytest.param(encode(Image.new("I;16", (64, 64), 120 * 257), "HEIF"), (120, 120, 120), id="10-bit grey HEIC"),
        pytest.param(encode(Image.new("RGB", (64, 64), RED), "JPEG", icc_profile=b"?" * 200), RED, id="bad profile"),
        pytest.param(
            encode(quarters(64, 64), "PNG", save_all=True, append_images=[Image.new("RGB", (64, 64), RED)]),
            BLUE,
            id="animated PNG: its still picture",
        ),
    ],
)
def test_unusual_pixels_come_out_as_srgb_on_white(data: bytes, expected: tuple[int, int, int]) -> None:
    assert close(decode(develop(data)[0]), 0.6, 0.6, expected, tolerance=4)


def test_the_many_pictures_of_a_heic_give_the_primary_one() -> None:
    data = encode(Image.new("RGB", (64, 64), RED), "HEIF", save_all=True, append_images=[quarters(100, 50)])

    assert close(decode(develop(data)[0]), 0.5, 0.5, RED)


def test_a_tiled_heic_as_phones_write_it() -> None:
    file = io.BytesIO()
    pillow_heif.from_pillow(quarters(640, 512)).save(file, quality=90, tile_size=256)
    assert b"grid" in file.getvalue()

    photo = decode(develop(file.getvalue())[0])

    assert photo.size == (640, 512)
    assert close(photo, 0.9, 0.1, GREEN)


@pytest.mark.parametrize("major", [b"mif1", b"mif2", b"miaf", b"msf1", b"hevc", b"heix"])
def test_a_heic_may_call_itself_by_another_name_first(major: bytes) -> None:
    heic = encode(quarters(64, 64), "HEIF")
    assert b"heic" in heic[16 : int.from_bytes(heic[:4], "big")]  # among the compatible brands

    assert close(decode(develop(heic[:8] + major + heic[12:])[0]), 0.9, 0.1, GREEN)


@pytest.mark.parametrize(("pixel", "expected"), [((110, 20, 20, 128), (237, 147, 147)), ((0, 0, 0, 0), WHITE)])
def test_a_heic_may_have_premultiplied_alpha(pixel: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    heif = pillow_heif.from_bytes("RGBa", (64, 64), bytes(pixel) * 64 * 64)
    assert heif.premultiplied_alpha
    file = io.BytesIO()
    heif.save(file, quality=-1, chroma=444)

    assert close(decode(develop(file.getvalue())[0]), 0.5, 0.5, expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_may_lack_its_end_marker_and_not_a_byte_more(options: dict[str, Any]) -> None:
    noise = Image.effect_noise((24, 24), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x010E] = "an end of its own: \xff\xd9"
    jpeg = encode(noise, "JPEG", exif=exif.tobytes(), **options)
    assert jpeg.endswith(b"\xff\xd9")
    whole = develop(jpeg)

    taken = []
    for lacking in range(1, len(jpeg)):
        with contextlib.suppress(Refused):
            assert develop(jpeg[:-lacking]) == whole
            taken.append(lacking)

    assert taken == [1, 2]


def test_a_jpeg_that_lacks_whole_scans_is_refused() -> None:
    jpeg = encode(Image.effect_noise((24, 24), 60).convert("RGB"), "JPEG", progressive=True)
    scans = [at for at in range(len(jpeg)) if jpeg.startswith(b"\xff\xda", at)]
    assert len(scans) > 5

    for at in scans[1:]:  # what is left is a picture, and a coarser one
        tables = jpeg.rindex(b"\xff\xc4", 0, at)
        with pytest.raises(Refused):
            develop(jpeg[:tables])
        with pytest.raises(Refused):
            develop(jpeg[:at])


def test_what_samsung_phones_write_is_taken() -> None:
    jpeg = encode(quarters(64, 64), "JPEG")
    scan = jpeg.index(b"\xff\xda")
    end_of_header = scan + 2 + struct.unpack(">H", jpeg[scan + 2 : scan + 4])[0]
    bogus = jpeg[: end_of_header - 3] + bytes(3) + jpeg[end_of_header:]  # libjpeg: "Invalid SOS parameters"

    assert close(decode(develop(bogus)[0]), 0.9, 0.1, GREEN)


# What does not survive


def gps() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "SECRET description"
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0), 29: "SECRET date"}
    return exif.tobytes()


def with_metadata(file_format: str) -> bytes:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>SECRET place</rdf:RDF></x:xmpmeta>'
    options = dict(LOSSLESS[file_format], exif=gps(), xmp=xmp)
    if file_format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("GPS", "SECRET text")
        text.add_text("Location", "SECRET compressed text", zip=True)
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options["pnginfo"] = text
        del options["xmp"]
    if file_format == "JPEG":
        options.update(comment=b"SECRET comment", dpi=(301, 301))
    return encode(quarters(64, 64), file_format, **options)


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_metadata_at_all(file_format: str) -> None:
    data = with_metadata(file_format)
    assert b"SECRET" in data

    for jpeg in develop(data)[:2]:
        # Tables, frame and scans: no application segment (EXIF, XMP, ICC, JFIF …) and no comment.
        assert markers(jpeg) == {0xDB, 0xC2, 0xC4, 0xDA}
        assert b"SECRET" not in jpeg


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_trails_a_picture_is_dropped(file_format: str) -> None:
    data = encode(quarters(64, 64), file_format)
    payload = b"PK\x03\x04<?php system('SECRET'); ?><script>SECRET</script>"

    assert develop(data + payload) == develop(data)


# What is refused


def jpeg_claiming(width: int, height: int) -> bytes:
    jpeg = encode(Image.new("RGB", (64, 64)), "JPEG")
    return jpeg.replace(struct.pack(">HH", 64, 64), struct.pack(">HH", height, width))


def heic_claiming(width: int, height: int) -> bytes:
    heic = encode(Image.new("RGB", (72, 64)), "HEIF")
    return heic.replace(struct.pack(">II", 72, 64), struct.pack(">II", width, height))


def interlaced_claiming(width: int, height: int) -> bytes:
    return encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True).replace(
        struct.pack(">HH", 64, 64), struct.pack(">HH", height, width)
    )


TWO_FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (64, 64), BLUE)]}
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect/></svg>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", UNKNOWN, id="nothing"),
        pytest.param(b"Hello! " * 100, UNKNOWN, id="text"),
        pytest.param(SVG, UNKNOWN, id="SVG"),
        pytest.param(b"%PDF-1.7\n" + encode(quarters(64, 64), "JPEG"), UNKNOWN, id="PDF with a JPEG in it"),
        pytest.param(encode(quarters(64, 64), "GIF"), UNKNOWN, id="GIF"),
        pytest.param(encode(quarters(64, 64), "TIFF"), UNKNOWN, id="TIFF"),
        pytest.param(encode(quarters(64, 64), "BMP"), UNKNOWN, id="BMP"),
        pytest.param(encode(quarters(64, 64), "JPEG2000"), UNKNOWN, id="JPEG 2000"),
        pytest.param(encode(quarters(64, 64), "AVIF"), UNKNOWN, id="AVIF"),
        pytest.param(b"\0\0\0\x18ftypmp42" + bytes(400), UNKNOWN, id="MP4"),
        pytest.param(b"\0\0\0\x18ftypheic" + bytes(400), DAMAGED, id="rubbish called HEIC"),
        pytest.param(b"\xff\xff\xff\xffftypmif2" + bytes(400), UNKNOWN, id="endless list of brands"),
        pytest.param(b"\xff\xd8\xff\xe0" + bytes(400), UNKNOWN, id="rubbish called JPEG"),
        pytest.param(
            encode(quarters(64, 64), "WEBP", **TWO_FRAMES), "Animated pictures are not accepted.", id="animated WebP"
        ),
        pytest.param(png_of(1, 1), "The picture is too small: 1 by 1 pixels.", id="1 pixel"),
        pytest.param(png_of(7, 900), "The picture is too small: 7 by 900 pixels.", id="7 pixels wide"),
        pytest.param(png_of(20_001, 8), "The picture is too large: 20001 by 8 pixels.", id="too long"),
        pytest.param(png_of(30_000, 30_000), "The picture is too large: 30000 by 30000 pixels.", id="PNG bomb"),
        pytest.param(
            png_of(6000, 6000, depth=16), "The picture is too large: 6000 by 6000 pixels.", id="16-bit PNG bomb"
        ),
        pytest.param(jpeg_claiming(10_000, 8000), "The picture is too large: 10000 by 8000 pixels.", id="JPEG bomb"),
        pytest.param(
            interlaced_claiming(10_000, 8000),
            "The picture is too large: 10000 by 8000 pixels.",
            id="progressive JPEG bomb",
        ),
        pytest.param(heic_claiming(10_000, 8000), "The picture is too large: 10000 by 8000 pixels.", id="HEIC bomb"),
        pytest.param(heic_claiming(8, 8), DAMAGED, id="HEIC that hides its size"),
    ],
)
def test_anything_else_is_refused_at_once(data: bytes, message: str) -> None:
    started = time.process_time()

    with pytest.raises(Refused) as refusal:
        develop(data)

    assert str(refusal.value) == message
    assert time.process_time() - started < 2


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(file_format: str, kept: float) -> None:
    noise = Image.effect_noise((160, 120), 60).convert("RGB")
    data = encode(noise, file_format, **LOSSLESS[file_format])

    with pytest.raises(Refused):
        develop(data[: int(len(data) * kept)])


def test_only_three_loaders_are_left_and_none_of_them_reads_files(tmp_path: Path) -> None:
    develop(encode(quarters(64, 64), "JPEG"))

    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(quarters(64, 64), "JPEG"))
    with pytest.raises(pyvips.Error):
        pyvips.Image.new_from_file(str(path))
    with pytest.raises(pyvips.Error):
        pyvips.Image.svgload_buffer(SVG)
    with pytest.raises(pyvips.Error):
        pyvips.Image.gifload_buffer(encode(quarters(64, 64), "GIF"))
    with pytest.raises(pyvips.Error):
        pyvips.Image.heifload_buffer(encode(quarters(64, 64), "AVIF"))


# The process around it


def test_process_gives_what_the_darkroom_makes() -> None:
    data = encode(quarters(800, 600), "JPEG")
    image, thumbnail, width, height, phash = develop(data)

    assert process(data) == imaging.Photo(image, thumbnail, width, height, f"{phash:016x}")


def test_a_progressive_jpeg_may_be_as_large_as_any() -> None:
    huge = Image.new("RGB", (9400, 7040), RED)
    data = encode(huge, "JPEG", progressive=True, subsampling=0)
    assert huge.width * huge.height * 3 > 0.99 * darkroom.MAX_DECODED_BYTES

    assert process(data).width == 1200


def test_without_its_library_a_heic_is_refused_and_the_rest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    with pytest.raises(Refused, match=r"^HEIC pictures are not accepted here\.$"):
        develop(encode(quarters(64, 64), "HEIF"))
    for file_format in FORMATS[:3]:
        assert develop(encode(quarters(64, 64), file_format))


# Made by sharp-phash 2.2.0 on sharp 0.35.5; benchmarks/photo_hashes.py compares fifty.
@pytest.mark.parametrize(
    ("data", "phash"),
    [
        pytest.param(encode(drawing(640, 480, 1), "PNG"), "ba96cdec0ccb34b2", id="PNG"),
        pytest.param(
            encode(drawing(1900, 1300, 2), "JPEG", quality=80, exif=turned(6)),
            "3c8f0cf3b8b06357",
            id="JPEG on its side",
        ),
        pytest.param(
            encode(drawing(333, 517, 3), "JPEG", progressive=True), "b4644e9930b7c618", id="narrow progressive JPEG"
        ),
        pytest.param(encode(drawing(800, 600, 4), "WEBP", quality=80), "4766b49933669947", id="WebP"),
        pytest.param(encode(translucent(drawing(500, 500, 5)), "PNG"), "e46fee19398d82e3", id="PNG with alpha"),
        pytest.param(encode(drawing(20, 24, 6), "PNG"), "c0c3878fdf0eceff", id="tiny PNG"),
    ],
)
def test_a_picture_has_the_hash_that_the_node_service_gave_it(data: bytes, phash: str) -> None:
    assert (int(process(data).phash, 16) ^ int(phash, 16)).bit_count() <= 1  # other processors may round otherwise


def test_a_picture_and_its_copies_look_alike_and_another_does_not() -> None:
    def far(one: bytes, other: bytes) -> int:
        return (develop(one)[4] ^ develop(other)[4]).bit_count()

    image = drawing(640, 480, 1)
    first = encode(image, "PNG")
    for copy in (
        encode(image.resize((320, 240)), "JPEG", quality=50),
        encode(image.convert("L"), "WEBP"),
        encode(image, "HEIF", quality=60),
        develop(first)[0],
    ):
        assert far(first, copy) < 10
    assert far(first, encode(drawing(640, 480, 2), "PNG")) > 15


def test_process_says_why_it_refuses() -> None:
    with pytest.raises(InvalidImage, match=r"^The picture is too small: 1 by 1 pixels\.$"):
        process(png_of(1, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_memory_is_bounded(tmp_path: Path) -> None:
    text = zlib.compress(b"0" * 8_000_000, 9)
    unfolding = png_of(64, 64, chunk(b"zTXt", b"a\0\0" + text) * 60)  # 0.5 MB; 480 MB before the first pixel
    (tmp_path / "upload").write_bytes(unfolding)
    command = [sys.executable, "-I", darkroom.__file__, str(imaging.CPU_SECONDS), "300000000"]
    # By way of a small process: a child starts with its parent's memory as its peak, and ours is large.
    watch = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )

    with (tmp_path / "upload").open("rb") as upload:
        watched = subprocess.run(
            [sys.executable, "-c", watch, *command], stdin=upload, capture_output=True, text=True, check=True
        )

    assert int(watched.stdout) * 1024 < 300_000_000


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(imaging, "CPU_SECONDS", 1)

    with pytest.raises(InvalidImage, match="too much time or memory"):
        process(jpeg_of_many_scans())

    assert "ended by SIGXCPU" in caplog.text


def jpeg_of_many_scans() -> bytes:
    """Return a JPEG of 0.2 MB that is valid and would take many seconds: one scan per coefficient and bit."""
    jpeg = encode(Image.new("RGB", (4000, 3000)), "JPEG", progressive=True, subsampling=0)
    first = jpeg.index(b"\xff\xda")
    second = jpeg.index(b"\xff\xda", first + 2)
    codes = jpeg[second + 10 : jpeg.index(b"\xff\xc4", second)]
    scans = [
        b"\xff\xda"
        + struct.pack(">HBBBBBB", 8, 1, component, 0, coefficient, coefficient, bit_before << 4 | bit)
        + codes
        for component in (1, 2, 3)
        for coefficient in range(1, 64)
        for bit_before, bit in zip((0, *range(13, 0, -1)), range(13, -1, -1), strict=True)
    ]
    return jpeg[:second] + b"".join(scans) + b"\xff\xd9"


def test_the_clock_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(imaging, "WALL_SECONDS", 0.001)

    with caplog.at_level(logging.WARNING), pytest.raises(InvalidImage, match="too much time or memory"):
        process(encode(quarters(64, 64), "JPEG"))

    assert "still busy" in caplog.text


def test_a_broken_installation_is_not_the_clients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging, "_DARKROOM", darkroom.__file__ + ".missing")

    with pytest.raises(RuntimeError, match="No such file"):
        process(encode(quarters(64, 64), "JPEG"))


def test_threads_take_turns() -> None:
    data = encode(quarters(64, 64), "JPEG")

    with ThreadPoolExecutor(4) as pool:
        photos = list(pool.map(process, [data] * 4))

    assert photos == [photos[0]] * 4
