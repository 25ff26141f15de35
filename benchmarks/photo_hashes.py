"""Compare our perceptual hashes with those of the npm package sharp-phash, which the Node service asked.

    npm install --prefix /some/folder sharp sharp-phash
    python -m benchmarks.photo_hashes /some/folder

Both hash the same 50 generated pictures: soft shapes, noise, gradients and drawn faces, as JPEG, PNG and WebP, small
and large, on their side, with alpha, grey, of 16 bits and in Display P3. Prints how many bits lie between the two, kind
by kind, and how far the pictures lie from one another.
"""

import base64
import io
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyvips
from PIL import Image, ImageDraw

from afterhours_service.profiles.imaging import process
from afterhours_service.profiles.queries import BAN_DISTANCE

SHARP_PHASH = """
const phash = require("sharp-phash");
(async () => {
    const pictures = JSON.parse(require("fs").readFileSync(0));
    const hashes = [];
    for (const picture of pictures) {
        const bits = await phash(Buffer.from(picture, "base64"));
        hashes.push(BigInt("0b" + bits).toString(16).padStart(16, "0"));
    }
    console.log(JSON.stringify(hashes));
})();
"""


def scene(width: int, height: int, seed: int) -> pyvips.Image:
    """Return soft shapes, fine detail and the noise of a sensor, in sRGB."""
    shapes = pyvips.Image.perlin(width, height, cell_size=max(width // 4, 8), seed=seed) * 80
    detail = pyvips.Image.perlin(width, height, cell_size=12, seed=seed + 100) * 18
    planes = [
        shapes + detail + pyvips.Image.gaussnoise(width, height, sigma=7, seed=seed + n) + 100 + 20 * n
        for n in range(3)
    ]
    return planes[0].bandjoin(planes[1:]).cast("uchar").copy(interpretation="srgb")


def face(width: int, height: int, seed: int) -> Image.Image:
    """Draw a face, its place, size and colours by chance."""
    chance = random.Random(seed)
    image = Image.new("RGB", (width, height), tuple(chance.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    radius = chance.uniform(0.2, 0.4) * min(width, height)
    x, y = chance.uniform(0.3, 0.7) * width, chance.uniform(0.3, 0.7) * height
    skin = tuple(chance.randrange(90, 250) for _ in range(3))
    draw.ellipse((x - radius, y - 1.3 * radius, x + radius, y + 1.3 * radius), fill=skin)
    for side in (-0.4, 0.4):
        eye = x + side * radius, y - 0.3 * radius
        draw.ellipse(
            (eye[0] - radius / 8, eye[1] - radius / 10, eye[0] + radius / 8, eye[1] + radius / 10), fill="black"
        )
    draw.arc((x - radius / 2, y, x + radius / 2, y + radius), 20, 160, fill="darkred", width=max(int(radius / 15), 1))
    draw.rectangle((x - radius, y - 1.4 * radius, x + radius, y - 0.9 * radius), fill="saddlebrown")
    return image


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def pictures() -> Iterator[tuple[str, bytes]]:
    """Yield 50 pictures and their kind."""
    for seed in range(8):
        width, height = [(1600, 1200), (900, 1350), (640, 640), (333, 517)][seed % 4]
        yield "scene, JPEG", scene(width, height, seed).jpegsave_buffer(Q=75 + 3 * seed, interlace=seed % 2 == 1)
    for orientation in range(1, 9):
        image = scene(1200, 800, 20 + orientation)
        image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
        yield "scene on its side, JPEG", image.jpegsave_buffer(Q=85)
    for seed in range(4):
        yield "12 megapixels, JPEG", scene(4032, 3024, 40 + seed).jpegsave_buffer(Q=80)
        wide = scene(1500, 1000, 50 + seed).icc_transform("p3", input_profile="srgb", embedded=False)
        yield "Display P3, JPEG", wide.jpegsave_buffer(Q=88)
    for seed in range(8):
        yield "face, JPEG", encode(face(700 + 90 * seed, 1100 - 60 * seed, seed), "JPEG", quality=85)
    yield from unusual_pictures()


def unusual_pictures() -> Iterator[tuple[str, bytes]]:
    """Yield 18 of them."""
    for seed in range(4):
        yield "face, WebP", encode(face(800, 1000, 60 + seed), "WEBP", quality=80)
    for seed in range(5):
        image = face(600, 600, 70 + seed)
        image.putalpha(Image.radial_gradient("L").resize(image.size).point(lambda level: 255 - level))
        yield "face with alpha, PNG", encode(image, "PNG")
    for angle in (0, 30, 60):
        ramp = Image.linear_gradient("L").rotate(angle).resize((900, 700))
        yield "gradient, PNG", encode(Image.merge("RGB", (ramp, ramp, ramp)), "PNG")
    for seed in range(2):
        yield "grey scene, PNG", scene(800, 600, 80 + seed).colourspace("b-w").pngsave_buffer()
        yield "16 bits, PNG", scene(800, 600, 90 + seed).colourspace("rgb16").pngsave_buffer()
        yield "pure noise, PNG", encode(Image.effect_noise((640 + seed, 480), 80).convert("RGB"), "PNG")


def of_the_node_service(folder: Path, data: list[bytes]) -> list[int]:
    """Return the hashes that sharp-phash makes."""
    done = subprocess.run(
        ["node", "-e", SHARP_PHASH],
        input=json.dumps([base64.b64encode(picture).decode() for picture in data]),
        env=os.environ | {"NODE_PATH": str(folder / "node_modules")},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(phash, 16) for phash in json.loads(done.stdout)]


def main(folder: Path) -> None:
    """Print the table."""
    given = list(pictures())
    data = [picture for _, picture in given]
    ours = [int(process(picture).phash, 16) for picture in data]
    distances = [(a ^ b).bit_count() for a, b in zip(ours, of_the_node_service(folder, data), strict=True)]
    print("| pictures | | median distance | largest |\n| --- | ---: | ---: | ---: |")
    for kind in dict.fromkeys(kind for kind, _ in given):
        some = [distance for (name, _), distance in zip(given, distances, strict=True) if name == kind]
        print(f"| {kind} | {len(some)} | {statistics.median(some):g} | {max(some)} |")
    print(f"| **all** | {len(distances)} | {statistics.median(distances):g} | {max(distances)} |")
    apart = [(a ^ b).bit_count() for a, b in itertools.combinations(ours, 2)]
    near = sum(distance < BAN_DISTANCE for distance in apart)
    print(f"\nDifferent pictures: {statistics.median(apart):g} bits in the median, {min(apart)} at least;")
    print(f"{near} of {len(apart)} pairs would count as the same picture.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
