"""Untrusted pictures: accepted formats, and conversion to 8-bit RGB. Free of torch.

The package opens pictures only by `open_png` or `read_picture`. Pillow decodes these formats itself; others may start
another program (PostScript starts Ghostscript), and a file's name does not determine its format.
"""

import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI")
ENDINGS = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".avif", ".qoi",
})  # fmt: skip
MOST_PIXELS = 89_478_485  # of a file; Pillow's own limit, above which it warns
MOST_STRIP_PIXELS = 2**24  # of a picture within a record
MOST_STRIP_BYTES = 2**24
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 262, 339
GREY = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"})
GREY_STEPS = {"1": 255, "L;2": 85, "L;4": 17}  # scale of low-bit grey in PNGs to 8 bits, for its transparent value
UNKNOWN_RANGE = "so that its black and white are unknown: save it with 8 or 16 bits"


class BadPicture(ValueError):
    """A picture that cannot be read; its text is the reason, as in `NAME (it is damaged)`."""


class UnclearPicture(BadPicture):
    """A valid picture without a unique conversion to 8-bit RGB."""


class Picture(NamedTuple):
    """A picture as displayed, and the conversions applied."""

    image: Image.Image  # RGB
    traits: frozenset[str]  # of TRAITS


TRAITS = ("grey", "deep", "transparent", "turned", "several")


def open_png(content: bytes) -> Image.Image:
    """Return a PNG of a record or a report, decoded, as RGB.

    Raises:
        BadPicture: it is not a PNG, is damaged or is too large.
    """
    if len(content) > MOST_STRIP_BYTES:
        raise BadPicture(f"it has {len(content)} bytes, more than {MOST_STRIP_BYTES}")
    return _decoded(io.BytesIO(content), ("PNG",), MOST_STRIP_PIXELS).image.convert("RGB")


def read_picture(path: Path) -> Picture:
    """Return a file's picture as displayed: upright, transparent pixels over white, first frame only.

    8-bit pictures keep their values; 16-bit ones keep their upper eight bits.

    Raises:
        BadPicture: the file cannot be read.
        UnclearPicture: its values have no known range.
    """
    opened = _decoded(path, _formats(), MOST_PIXELS)
    try:
        return _as_seen(*opened)
    except (BadPicture, MemoryError):
        raise
    except Exception as error:
        raise BadPicture("it is damaged") from error


class _Decoded(NamedTuple):
    """A decoded picture, with facts that Pillow has only while the file is open."""

    image: Image.Image
    raw_mode: str
    turn: int  # EXIF orientation still to apply; Pillow rotates TIFFs while decoding
    traits: set[str]


@cache
def _formats() -> tuple[str, ...]:
    """Return the accepted formats that this Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decoded(source: Path | io.BytesIO, formats: tuple[str, ...], most: int) -> _Decoded:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on metadata, and on sizes, which are checked here
            with Image.open(source, formats=formats) as image:
                width, height = image.size
                if width * height > most:
                    raise BadPicture(f"it has {width} x {height} pixels, more than {most} in all")
                raw_mode, turn, traits = _raw_mode(image), _orientation(image), set()
                if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a camera's extra views
                    traits.add("several")
                image.load()
                if turn in TURNS or _orientation(image) in TURNS:
                    traits.add("turned")
                return _Decoded(image, raw_mode, _orientation(image), traits)
    except (BadPicture, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"it has more than {most} pixels") from error
    except Exception as error:  # Pillow's plugins raise various errors on damaged files
        raise BadPicture("it is damaged, or in a format that is not read") from error


def _raw_mode(image: Image.Image) -> str:
    """Return the raw mode of the file's values, where Pillow has it."""
    tile: Any = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF, which viewers ignore as well
        return 1
    return found if isinstance(found, int) else 1


def _as_seen(image: Image.Image, raw_mode: str, turn: int, traits: set[str]) -> Picture:
    if image.mode in GREY:
        traits.add("grey")
    if _tag(image, TIFF_SAMPLE_FORMAT, 1) != 1 or image.mode == "F":
        raise UnclearPicture(f"its values are signed or fractions, {UNKNOWN_RANGE}")
    if image.mode.startswith("I"):
        traits.add("deep")
        rgb = _from_deep(image, raw_mode, traits)
    else:
        _scale_transparent_value(image, raw_mode)
        rgb = _over_white(image, traits)
    return Picture(rgb.transpose(TURNS[turn]) if turn in TURNS else rgb, frozenset(traits))


def _from_deep(image: Image.Image, raw_mode: str, traits: set[str]) -> Image.Image:
    """Return grey values of more than 8 bits as RGB; raises UnclearPicture where their range is unknown."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise UnclearPicture(f"its values have 32 bits, {UNKNOWN_RANGE}")
    values = np.asarray(image).astype(np.int64)
    grey = (values >> (4 if raw_mode == "I;12" else 8)).clip(0, 255).astype(np.uint8)
    if _tag(image, TIFF_PHOTOMETRIC, 1) == 0:  # white is zero
        grey = 255 - grey
    hidden = image.info.get("transparency")
    if isinstance(hidden, int) and (values == hidden).any():
        traits.add("transparent")
        grey[values == hidden] = 255
    return Image.fromarray(grey).convert("RGB")


def _tag(image: Image.Image, number: int, usual: int) -> int:
    """Return the first value of a TIFF's tag."""
    tags: Any = getattr(image, "tag_v2", {})
    found = tags.get(number, usual)
    return int(found[0] if isinstance(found, tuple) else found)


def _scale_transparent_value(image: Image.Image, raw_mode: str) -> None:
    """Convert a PNG's transparent value to 8 bits, like its pixels."""
    hidden = image.info.get("transparency")
    if image.format != "PNG" or hidden is None:
        return
    if isinstance(hidden, int) and image.mode in ("1", "L"):
        step = GREY_STEPS.get(raw_mode, 1)
        image.info["transparency"] = 255 * bool(hidden) if step == 255 else hidden * step
    elif isinstance(hidden, tuple) and raw_mode.endswith("16B"):
        raise UnclearPicture("one of its 16-bit colours is transparent, which is ambiguous in 8 bits")


def _over_white(image: Image.Image, traits: set[str]) -> Image.Image:
    """Return an image as RGB, with transparent pixels over white."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        colours = image.convert("RGBA")
        if np.asarray(colours.getchannel("A")).min() < 255:
            traits.add("transparent")
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(colours)
            return white.convert("RGB")
    return image.convert("RGB")
