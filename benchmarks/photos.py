"""Compare libvips with Pillow on what a photo upload asks for: `python benchmarks/photos.py [runs]`.

Both turn the same 12-megapixel JPEG (generated; it lies on its side and carries a Display P3 profile, as phones write
it) into an upright progressive sRGB JPEG of at most 1200 pixels and a thumbnail of 200. Every run is a process of its
own, so that its peak memory is its own; within it the job is done once to warm up and then timed. The last row is
`imaging.process`, the way the service does it: with the start of a process for every photo. Prints a Markdown table.
"""

import io
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPEATS = 5

sys.path.insert(0, str(ROOT))


def picture() -> bytes:
    """Return a JPEG of 4032 by 3024 pixels: soft shapes, fine detail and the noise of a sensor; 3.5 MB."""
    import pyvips

    width, height = 4032, 3024
    shapes = pyvips.Image.perlin(width, height, cell_size=700, seed=1) * 70
    detail = pyvips.Image.perlin(width, height, cell_size=12, seed=2) * 18
    planes = [
        shapes + detail + pyvips.Image.gaussnoise(width, height, sigma=7, seed=n) + 100 + 20 * n for n in range(3)
    ]
    image = planes[0].bandjoin(planes[1:]).cast("uchar").copy(interpretation="srgb")
    image = image.icc_transform("p3", input_profile="srgb", embedded=False)
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    data: bytes = image.jpegsave_buffer(Q=90)
    return data


def with_libvips(data: bytes) -> object:
    from afterhours_service.profiles.darkroom import develop

    return develop(data)


def with_pillow(data: bytes) -> object:
    from PIL import Image, ImageCms, ImageOps

    def encode(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85, progressive=True, optimize=True)
        return file.getvalue()

    with Image.open(io.BytesIO(data)) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        image.draft("RGB", (1200, 1200))
        upright = ImageOps.exif_transpose(image)
    upright.thumbnail((1200, 1200), Image.Resampling.LANCZOS)
    photo = ImageCms.profileToProfile(upright, profile, ImageCms.createProfile("sRGB"))
    assert photo
    photo.info.clear()
    return encode(photo), encode(ImageOps.fit(photo, (200, 200), Image.Resampling.LANCZOS))


def with_process(data: bytes) -> object:
    from afterhours_service.profiles.imaging import process

    return process(data)


CONTENDERS: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "libvips": ("libvips, `darkroom.develop`", with_libvips),
    "pillow": ("Pillow, the same job", with_pillow),
    "process": ("`imaging.process`: libvips, one process per photo", with_process),
}


def processor_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def measure(job: Callable[[bytes], object]) -> None:
    """Print the seconds per photo by the clock and of processor time, and the peak memory in bytes."""
    data = sys.stdin.buffer.read()
    job(data)
    clock, processor = time.perf_counter(), processor_seconds()
    for _ in range(REPEATS):
        job(data)
    clock, processor = time.perf_counter() - clock, processor_seconds() - processor
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(clock / REPEATS, processor / REPEATS, peak * (1 if sys.platform == "darwin" else 1024))


def run(contender: str, data: bytes) -> list[float]:
    command = [sys.executable, __file__, "measure", contender]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    return [float(figure) for figure in done.stdout.split()]


def main(runs: int) -> None:
    data = picture()
    results: dict[str, list[list[float]]] = {contender: [] for contender in CONTENDERS}
    for _ in range(runs):  # in turn, so that a busy moment of the machine meets all of them
        for contender, measured in results.items():
            measured.append(run(contender, data))
    print(f"12-megapixel JPEG of {len(data) / 1e6:.1f} MB, medians of {runs} runs, one photo at a time:\n")
    print("| | photos per second | ms per photo | of processor time | peak memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for contender, measured in results.items():
        clock, processor, peak = (statistics.median(column) for column in zip(*measured, strict=True))
        name = CONTENDERS[contender][0]
        print(f"| {name} | {1 / clock:.1f} | {clock * 1e3:.0f} | {processor * 1e3:.0f} | {peak / 1e6:.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(CONTENDERS[sys.argv[2]][1])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 5)
