"""Pictures from outside: what their pixels mean, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from unlearnbench.store.pictures import ENDINGS, BadPicture, UnclearPicture, open_png, read_picture


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(bits, colour, row, hidden=b"", width=2):
    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    more = chunk(b"tRNS", hidden) if hidden else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(bits, data, sample_format=1, photometric=1, order="<"):
    """A TIFF of two grey values."""
    tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    body = data + b"\0" * (len(data) % 2)
    magic = b"II" if order == "<" else b"MM"
    return (
        magic + struct.pack(order + "HI", 42, 8 + len(body)) + body + struct.pack(order + "H", len(tags)) + entries
        + bytes(4)
    )  # fmt: skip


def read(tmp_path, content, name="x.png"):
    (tmp_path / name).write_bytes(content)
    return read_picture(tmp_path / name)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(picture):
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image)


@pytest.mark.parametrize(
    ("content", "grey", "traits"),
    [
        (png(16, 0, b"\x12\x34\xff\xff"), [0x12, 255], {"grey", "deep"}),
        (png(16, 0, b"\x12\x34\x12\x35", b"\x12\x34"), [255, 0x12], {"grey", "deep", "transparent"}),
        (tiff(16, b"\x34\x12\xff\xff"), [0x12, 255], {"grey", "deep"}),
        (tiff(16, b"\x12\x34\xff\xff", order=">"), [0x12, 255], {"grey", "deep"}),
        (tiff(16, b"\x34\x12\xff\xff", photometric=0), [255 - 0x12, 0], {"grey", "deep"}),  # white is zero
        (tiff(12, b"\x12\x3f\xff"), [0x12, 255], {"grey", "deep"}),
        (b"P5 2 1 4095\n\x01\x23\x0f\xff", [0x12, 255], {"grey", "deep"}),
        (png(1, 0, b"\x40", b"\0\0"), [255, 255], {"grey", "transparent"}),
        (png(2, 0, b"\x60", b"\0\1"), [255, 170], {"grey", "transparent"}),
        (png(4, 0, b"\x12", b"\0\1"), [255, 34], {"grey", "transparent"}),
        (png(8, 0, b"\x12\x13", b"\0\x12"), [255, 0x13], {"grey", "transparent"}),
        (png(8, 4, b"\x12\x00\x13\xff"), [255, 0x13], {"grey", "transparent"}),
        (png(8, 4, b"\x12\xff\x13\xff"), [0x12, 0x13], {"grey"}),
        (png(8, 0, b"\x12\x13"), [0x12, 0x13], {"grey"}),
        (saved(Image.new("RGBA", (2, 1), (9, 9, 9, 0)), "PNG"), [255, 255], {"transparent"}),
        (saved(Image.new("P", (2, 1)), "GIF", transparency=0), [255, 255], {"transparent"}),
    ],
    ids=[
        "png 16", "png 16 transparent", "tiff 16", "tiff 16 big-endian", "tiff 16 inverted", "tiff 12", "pgm 12",
        "png 1", "png 2", "png 4", "png 8", "grey and alpha", "grey and no transparent pixel", "grey", "alpha", "gif",
    ],
)  # fmt: skip
def test_grey_deep_and_transparent_values(tmp_path, content, grey, traits):
    picture = read(tmp_path, content)
    assert pixels(picture)[0].tolist() == [[value] * 3 for value in grey]
    assert picture.traits == traits


def test_half_transparent_pixels_are_laid_over_white(tmp_path):
    picture = read(tmp_path, saved(Image.new("RGBA", (1, 1), (0, 0, 255, 51)), "PNG"))
    assert pixels(picture)[0, 0].tolist() == [204, 204, 255]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(32, bytes(8)), "32 bits"),
        (tiff(32, bytes(8), sample_format=3), "fractions"),
        (tiff(16, bytes(4), sample_format=2), "signed"),
        (tiff(8, bytes(2), sample_format=2), "signed"),
        (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), "fractions"),
        (png(16, 2, bytes(12), bytes(6)), "16-bit colours is transparent"),
    ],
    ids=["32 bits", "float", "signed 16", "signed 8", "pfm", "a 16-bit colour is transparent"],
)
def test_values_of_unknown_meaning_are_refused(tmp_path, content, reason):
    with pytest.raises(UnclearPicture, match=reason):
        read(tmp_path, content)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, kind, orientation):
    upright, exif = np.arange(6, dtype=np.uint8).reshape(2, 3), Image.Exif()
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif[0x112] = orientation
    image = Image.fromarray(np.repeat(stored[..., None], 3, axis=2))
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = read(tmp_path, saved(image, kind, exif=exif, **options))
    assert pixels(picture)[..., 0].tolist() == upright.tolist()
    assert picture.traits == ({"turned"} if orientation > 1 else set())


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_of_several_frames_is_used(tmp_path, kind):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("black", "white")]
    picture = read(tmp_path, saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert (pixels(picture).max(), picture.traits) == (0, {"several"})


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr", "P", "RGBA"])
def test_other_colour_spaces_show_the_same_colour(tmp_path, mode):
    colour, image = (204, 51, 102), Image.new("RGB", (2, 2), (204, 51, 102))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    else:
        image = image.convert(mode)
    assert abs(pixels(read(tmp_path, saved(image, "TIFF")))[0, 0] - np.array(colour)).max() <= 2


def test_plain_pictures_keep_every_value(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for image, kind in ((noise, "PNG"), (noise, "JPEG"), (noise.convert("L"), "JPEG"), (noise, "BMP")):
        content = saved(image, kind)
        plain = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert (pixels(read(tmp_path, content)) == plain).all()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000)])
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path, size):
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    for attempt in (lambda: read(tmp_path, content), lambda: open_png(content)):
        with pytest.raises(BadPicture, match=r"more than \d+"):
            attempt()


@pytest.mark.parametrize("content", [b"", b"text", EPS, saved(Image.new("RGB", (64, 64)), "JPEG")[:300]])
def test_what_no_format_of_the_list_can_read_is_refused(tmp_path, content):
    with pytest.raises(BadPicture, match="damaged"):
        read(tmp_path, content)


def test_a_record_holds_png_alone():
    image = Image.new("L", (3, 2), 7)
    assert (open_png(saved(image, "PNG")).mode, open_png(saved(image, "PNG")).size) == ("RGB", (3, 2))
    with pytest.raises(BadPicture):
        open_png(saved(image, "GIF"))
    with pytest.raises(BadPicture):
        open_png(saved(image, "PNG")[:40])


def test_every_ending_belongs_to_a_format_of_the_list():
    from PIL import features

    Image.init()
    known = Image.registered_extensions()
    wanted = ENDINGS if features.check("avif") else ENDINGS - {".avif"}
    assert {known.get(ending) for ending in wanted} <= {
        "PNG", "JPEG", "MPO", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI"
    }  # fmt: skip
