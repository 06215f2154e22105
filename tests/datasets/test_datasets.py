"""Datasets: what is read from disk, what is refused, and what the choices of a user make of a recipe."""

import hashlib
import io
import os
import pickle
import re
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import fake_record
from unlearnbench.datasets import DATASETS, Source, load_dataset, protocol_names, title_of
from unlearnbench.datasets.cifar10 import open_part
from unlearnbench.datasets.profiles import colour_profiles
from unlearnbench.datasets.recipes import RETAINED, WITHOUT_CLASS_0
from unlearnbench.errors import UsageError
from unlearnbench.measure.inputs import reference_images
from unlearnbench.models.unet import build_unet, unet_config
from unlearnbench.plugins.spec import method
from unlearnbench.report.data.board import boards
from unlearnbench.run.stale import current_dataset, stale_ids
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.fields import PLAIN

SILENT = lambda what, done, total: None  # noqa: E731


def paint(path, colour, size=(32, 32), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """A sound image folder of two classes: 12 training and 3 test images each, of one colour per class."""
    root = tmp_path / "pets"
    for part, n in (("train", 12), ("test", 3)):
        for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
            for k in range(n):
                paint(root / part / name / f"{k}.png", colour)
    return root


def open_folder(root, **options):
    return load_dataset(Source("imagefolder", data_root=root, **options))


def images_of(root, tmp_path, **options):
    return open_folder(root, **options).load(ArtifactStore(tmp_path / "cache"), SILENT)


class TestImageFolder:
    def test_labels_follow_sorted_names_and_pixels_are_exact(self, folder, tmp_path):
        dataset, images = open_folder(folder), images_of(folder, tmp_path)
        assert (dataset.class_names, dataset.image_shape) == (("cat", "dog"), (3, 32, 32))
        assert (dataset.name, dataset.title) == (f"pets-{dataset.content[:6]}", "pets (32x32, folder of images)")
        assert images.train.images.shape == (24, 3, 32, 32)
        assert images.train.labels.tolist() == [0] * 12 + [1] * 12
        assert images.test.labels.tolist() == [0] * 3 + [1] * 3
        assert images.train.images[0, :, 5, 5].tolist() == [200, 0, 0]
        assert images.train.images[-1, :, 5, 5].tolist() == [0, 0, 200]
        assert images.notes == ()

    def test_any_size_is_fitted_by_its_middle_square(self, folder, tmp_path):
        wide = Image.new("RGB", (96, 48))
        wide.paste((255, 255, 255), (24, 0, 72, 48))  # the middle square is white
        wide.save(folder / "train" / "cat" / "0.png")
        images = images_of(folder, tmp_path, image_size=16)
        assert images.train.images.shape[1:] == (3, 16, 16)
        assert (images.train.images[0, :, 2:14, 2:14] == 255).all()

    def test_a_single_folder_is_split_by_hash_and_the_split_does_not_move(self, tmp_path):
        root = tmp_path / "single"
        for name in ("cat", "dog"):
            for k in range(40):
                paint(root / name / f"{k}.png", (k, k, k))
        first = images_of(root, tmp_path)
        assert len(first.train.labels) + len(first.test.labels) == 80
        assert 4 <= len(first.test.labels) <= 30
        before = {bytes(image) for image in first.test.images[first.test.labels == 0]}
        paint(root / "cat" / "new.png", (255, 0, 0))
        after = images_of(root, tmp_path)
        assert before <= {bytes(image) for image in after.test.images[after.test.labels == 0]}

    @pytest.mark.parametrize("ending", ["gif", "png", "jpg", "tif", "webp", "ppm"])
    def test_a_truncated_file_of_any_kind_is_only_counted(self, folder, tmp_path, ending):
        for k in range(100, 220):
            paint(folder / "train" / "cat" / f"{k}.png", (200, 0, 0))
        whole = folder / "train" / "cat" / f"odd.{ending}"
        paint(whole, (200, 0, 0))
        whole.write_bytes(whole.read_bytes()[:14])
        assert len(images_of(folder, tmp_path).notes) == 1

    def test_it_is_decoded_once_and_again_when_a_file_changes(self, folder, tmp_path):
        images_of(folder, tmp_path)
        kept = list((tmp_path / "cache" / "images").glob("*/payload.safetensors"))
        images_of(folder, tmp_path)
        assert list((tmp_path / "cache" / "images").glob("*/payload.safetensors")) == kept
        paint(folder / "train" / "cat" / "0.png", (1, 2, 3), size=(33, 33))
        assert images_of(folder, tmp_path).train.images[0, :, 5, 5].tolist() == [1, 2, 3]

    def test_grayscale_among_colour_is_said(self, folder, tmp_path):
        paint(folder / "train" / "cat" / "0.png", 77, mode="L")
        images = images_of(folder, tmp_path)
        assert images.train.images[0, :, 0, 0].tolist() == [77, 77, 77]
        assert images.notes == ("1 of 30 images are grayscale among colour ones; they are used as RGB",)

    def test_a_few_corrupt_files_are_skipped_with_their_count(self, folder, tmp_path):
        for k in range(100, 220):
            paint(folder / "train" / "cat" / f"{k}.png", (200, 0, 0))
        (folder / "train" / "cat" / "0.png").write_bytes(b"no image")
        images = images_of(folder, tmp_path)
        assert len(images.train.labels) == 24 + 120 - 1
        skipped = "1 of 150 image files cannot be read and are skipped, such as train/cat/0.png"
        assert images.notes == (f"{skipped} (it is damaged, or in a format that is not read)",)

    def test_more_than_one_in_a_hundred_is_refused_and_nothing_is_left(self, folder, tmp_path):
        (folder / "train" / "cat" / "0.png").write_bytes(b"no image")
        truncated = (folder / "train" / "dog" / "0.png").read_bytes()[:60]
        (folder / "train" / "dog" / "0.png").write_bytes(truncated)
        with pytest.raises(UsageError, match="2 of 30 image files cannot be read, such as train/cat/0"):
            images_of(folder, tmp_path)
        left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert not left

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda root: [path.unlink() for path in (root / "test" / "dog").iterdir()], "test/dog holds no image"),
            (lambda root: (root / "train" / "emu").mkdir(), "only one of them has emu"),
            (lambda root: [p.rename(root / p.name) for p in (root / "test").iterdir()], "0 class folders|test"),
        ],
        ids=["empty class", "class in one part", "test without classes"],
    )
    def test_wrong_layouts(self, folder, spoil, message):
        spoil(folder)
        with pytest.raises(UsageError, match=message):
            open_folder(folder)

    @pytest.mark.parametrize("names", [[], ["cat"]], ids=["no class", "one class"])
    def test_fewer_than_two_classes(self, tmp_path, names):
        for name in names:
            for k in range(4):
                paint(tmp_path / "flat" / name / f"{k}.png", (0, 0, 0))
        (tmp_path / "flat").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=rf"holds {len(names)} class folders? with images: lay it out as"):
            open_folder(tmp_path / "flat")

    def test_other_refusals(self, tmp_path, folder):
        with pytest.raises(UsageError, match="there is no such folder"):
            open_folder(tmp_path / "absent")
        with pytest.raises(UsageError, match="needs --data-root"):
            load_dataset("imagefolder")
        with pytest.raises(UsageError, match="multiple of 8"):
            open_folder(folder, image_size=30)
        with pytest.raises(UsageError, match="--image-size is for --dataset imagefolder"):
            load_dataset(Source("cifar10", image_size=32))

    def test_numbered_classes_keep_their_numbers(self, tmp_path):
        for k in range(12):
            for number in range(6):
                paint(tmp_path / "numbered" / str(k) / f"{number}.png", (k, k, k))
        assert open_folder(tmp_path / "numbered").class_names == tuple(str(k) for k in range(12))

    def test_another_content_is_another_dataset(self, folder):
        before = open_folder(folder)
        paint(folder / "train" / "cat" / "new.png", (9, 9, 9))
        after = open_folder(folder)
        assert before.digest == after.digest
        assert (before.content, before.name) != (after.content, after.name)
        assert before.to_json()["content"] == before.content

    def test_two_classes_have_no_reference_set_without_class_0(self, folder):
        with pytest.raises(UsageError, match="leaves nothing of 2 classes to compare with: use smoke"):
            open_folder(folder, protocol="smoke-b4")

    @pytest.mark.parametrize("side", [8, 24, 32, 64, 72, 96])
    def test_every_size_that_is_accepted_can_be_trained(self, folder, side):
        dataset = open_folder(folder, image_size=side, protocol="paper")
        small = {**dataset.base.network, "block_out_channels": [8] * len(dataset.base.network["block_out_channels"])}
        small |= {"norm_num_groups": 4, "layers_per_block": 1}
        model = build_unet(unet_config(replace(dataset, base=replace(dataset.base, network=small))))
        with torch.no_grad():
            x = torch.zeros(1, 3, side, side)
            assert model(x, torch.tensor([5]), torch.tensor([2])).sample.shape == x.shape

    def test_a_folder_cannot_pass_for_a_known_data_set(self, folder):
        folder.rename(folder.parent / "cifar10")
        assert re.fullmatch("cifar10-[0-9a-f]{6}", open_folder(folder.parent / "cifar10").name)

    def test_a_dataset_reaches_a_cells_process(self, folder, tmp_path):
        dataset = pickle.loads(pickle.dumps(open_folder(folder)))
        assert len(dataset.load(ArtifactStore(tmp_path / "cache"), SILENT).train.labels) == 24


def paint_classes(folder, n=6, classes=("cat", "dog"), seed=0, kind="png"):
    """Classes of n images of noise each."""
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.{kind}")


def read_folder(root, tmp_path):
    return images_of(root, tmp_path, image_size=8)


class TestLayouts:
    @pytest.mark.parametrize(
        ("train", "test"),
        [("train", "val"), ("train", "valid"), ("training", "validation"), ("Train", "Test"), ("TRAIN", "testing")],
    )
    def test_parts_are_found_by_any_of_their_names(self, tmp_path, train, test):
        paint_classes(tmp_path / "a" / train, 6)
        paint_classes(tmp_path / "a" / test, 2)
        images = read_folder(tmp_path / "a", tmp_path)
        assert (len(images.train.labels), len(images.test.labels)) == (12, 4)
        said = () if test.casefold() in ("test", "testing") else (f"the test images are those of {test}",)
        assert images.notes == said

    def test_test_goes_before_validation_and_what_is_not_used_is_said(self, tmp_path):
        for part, n in (("train", 6), ("val", 3), ("test", 2), ("extra", 1)):
            paint_classes(tmp_path / "a" / part, n)
        images = read_folder(tmp_path / "a", tmp_path)
        assert len(images.test.labels) == 4
        assert images.notes == (
            "the test images are those of test; not used: val",
            "1 folder beside the two parts is left out: extra",
        )

    def test_a_test_part_without_labels_gives_way_to_validation(self, tmp_path):
        for part, n in (("train", 6), ("val", 3)):
            paint_classes(tmp_path / "a" / part, n)
        paint(tmp_path / "a" / "test" / "0.png", (1, 1, 1))
        assert len(read_folder(tmp_path / "a", tmp_path).test.labels) == 6

    def test_a_class_may_be_called_train(self, tmp_path):
        paint_classes(tmp_path / "a", classes=("bus", "train"))
        assert open_folder(tmp_path / "a", image_size=8).class_names == ("bus", "train")

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            (("train", "Train", "test"), "Train and train, which is ambiguous"),
            (("train", "val", "validation"), "val and validation, which is"),
            (("train", "other"), "only train does"),
            (("test", "val"), "only test, val does"),
        ],
    )
    def test_unclear_parts_are_refused(self, tmp_path, parts, message):
        for part in parts:
            paint_classes(tmp_path / "a" / part, 2)
        with pytest.raises(UsageError, match=message):
            open_folder(tmp_path / "a")

    def test_parts_without_class_folders_are_not_classes(self, tmp_path):
        paint_classes(tmp_path / "a", classes=("train", "val"))
        with pytest.raises(UsageError, match="train, val hold no class folders"):
            open_folder(tmp_path / "a")

    def test_hidden_files_of_other_programs_are_left_out_at_every_depth(self, tmp_path):
        root = tmp_path / "a"
        paint_classes(root)
        for name in (
            "cat/._0.png",
            "cat/.ipynb_checkpoints/0.png",
            "__MACOSX/a.png",
            "cat/in/.x/0.png",
            "dog/Thumbs.db",
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"no image")
        images = read_folder(root, tmp_path)
        assert len(images.train.labels) + len(images.test.labels) == 12
        (note,) = images.notes
        assert note.startswith("5 hidden files and folders are left out: __MACOSX, ")
        assert note.endswith(" and 2 more")

    def test_other_files_are_counted(self, tmp_path):
        paint_classes(tmp_path / "a")
        for name in ("cat/labels.csv", "cat/0.heic", "readme.txt"):
            (tmp_path / "a" / name).write_text("x")
        assert read_folder(tmp_path / "a", tmp_path).notes == (
            "2 files of other kinds are left out: cat/0.heic, cat/labels.csv",
            "1 file beside the class folders is left out: readme.txt",
        )

    def test_links_are_followed_once(self, tmp_path):
        root, away = tmp_path / "a", tmp_path / "away"
        paint_classes(away, 3, ("cat", "more"))
        paint_classes(root, 3, ("dog",))
        (root / "cat").symlink_to(away / "cat")
        (root / "dog" / "more").symlink_to(away / "more")
        (root / "dog" / "more" / "back").symlink_to(root / "dog")
        (root / "dog" / "lost.png").symlink_to(root / "nowhere")
        (root / "dog" / "self.png").symlink_to("self.png")
        images = read_folder(root, tmp_path)
        labels = [*images.train.labels, *images.test.labels]
        assert (labels.count(0), labels.count(1)) == (3, 6)
        (note,) = images.notes
        assert note.startswith("3 links that lead nowhere or in a circle are left out: dog/lost.png, dog/self.png")

    def test_one_file_in_two_places_is_said(self, tmp_path):
        for part in ("train", "test"):
            paint_classes(tmp_path / "a" / part, 2)
        (tmp_path / "a" / "test" / "cat" / "0.png").unlink()
        os.link(tmp_path / "a" / "train" / "cat" / "0.png", tmp_path / "a" / "test" / "cat" / "0.png")
        (note,) = read_folder(tmp_path / "a", tmp_path).notes
        assert note == "1 of 8 images are additional links to the same file"

    @pytest.mark.parametrize("kind", ["jp2", "jfif", "pbm", "tif", "avif"])
    def test_endings_that_pillow_opens(self, tmp_path, kind):
        from PIL import features

        if kind == "avif" and not features.check("avif"):
            pytest.skip("this Pillow does not read AVIF")
        paint_classes(tmp_path / "a")
        saved_as = {"jfif": "JPEG", "pbm": "PPM"}.get(kind)
        Image.new("1" if kind == "pbm" else "RGB", (8, 8)).save(tmp_path / "a" / "cat" / f"more.{kind}", saved_as)
        images = read_folder(tmp_path / "a", tmp_path)
        assert len(images.train.labels) + len(images.test.labels) == 13


class TestNames:
    @pytest.mark.parametrize("kind", ["png", "bmp"])
    def test_two_folders_of_one_name_are_two_datasets(self, tmp_path, kind):
        for seed, place in enumerate("ab"):
            for name in ("images", "\u00e9"):
                paint_classes(tmp_path / place / name, seed=seed, kind=kind)
        names = [open_folder(tmp_path / place / name).name for place in "ab" for name in ("images", "\u00e9")]
        assert len(set(names)) == 4
        assert sum(bool(re.fullmatch("images-[0-9a-f]{6}", name)) for name in names) == 2
        assert sum(bool(re.fullmatch("imagefolder-[0-9a-f]{6}", name)) for name in names) == 2

    def test_a_copy_is_the_same_dataset_whatever_its_dates_and_normal_form(self, tmp_path):
        for k, letter in enumerate(("\u00e9", "e\u0301")):
            paint_classes(tmp_path / str(k) / "a", classes=(letter, "z"))
            paint(tmp_path / str(k) / "a" / "z" / f"{letter}.png", (1, 2, 3))
            os.utime(tmp_path / str(k) / "a" / "z" / "0.png", (k, k))
        first, second = (open_folder(tmp_path / str(k) / "a", image_size=8) for k in (0, 1))
        assert (first.name, first.content, first.class_names) == (second.name, second.content, second.class_names)
        assert first.class_names == ("z", "\u00e9")
        one, two = (read_folder(tmp_path / str(k) / "a", tmp_path) for k in (0, 1))
        assert (one.train.images == two.train.images).all()

    def test_what_cannot_be_printed_is_replaced_in_class_names(self, tmp_path):
        paint_classes(tmp_path / "a", classes=(os.fsdecode(b"caf\xe9"), "a\tb", "x\u202ey"))
        dataset = open_folder(tmp_path / "a", image_size=8)
        assert sorted(dataset.class_names) == ["a b", "caf?", "x y"]
        assert len(read_folder(tmp_path / "a", tmp_path).train.labels) > 0

    def test_classes_that_would_look_alike_are_refused(self, tmp_path):
        paint_classes(tmp_path / "a", classes=("a b", "a\tb"))
        with pytest.raises(UsageError, match="'a b' has another's printable name"):
            open_folder(tmp_path / "a")

    def test_a_long_name_still_names_records(self, tmp_path):
        paint_classes(tmp_path / ("n" * 100))
        dataset = open_folder(tmp_path / ("n" * 100), base="someone/model")
        assert PLAIN.fullmatch(dataset.name)

    def test_a_run_on_another_base_is_another_dataset(self, folder):
        given = [load_dataset(Source("digits", base=f"someone/{name}")) for name in ("one", "two")]
        assert all(re.fullmatch("digits-base-[0-9a-f]{6}", dataset.name) for dataset in given)
        assert given[0].name != given[1].name
        assert len(boards([fake_record(dataset=dataset.name) for dataset in given])) == 2
        assert given[0].title.startswith("digits (8x8, scikit-learn), base model ")
        assert re.fullmatch("pets-[0-9a-f]{6}-base-[0-9a-f]{6}", open_folder(folder, base="someone/one").name)


class TestPictures:
    def test_what_was_done_to_pictures_is_said(self, folder, tmp_path):
        exif, place = Image.Exif(), folder / "train" / "cat"
        exif[0x112] = 6
        Image.new("RGB", (9, 9)).save(place / "0.png", exif=exif)
        paint(place / "1.png", (1, 2, 3, 0), mode="RGBA")
        paint(place / "2.png", 30000, mode="I;16")
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        frames[0].save(place / "3.gif", save_all=True, append_images=frames[1:])
        assert images_of(folder, tmp_path).notes == (
            "1 of 31 images are grayscale among colour ones; they are used as RGB",
            "1 of 31 images have more than 8 bits per pixel; the upper 8 are used",
            "1 of 31 images have transparent pixels; they are laid over white",
            "1 of 31 images are turned as their EXIF orientation says",
            "1 of 31 image files hold several frames; the first one is used",
        )

    def test_values_of_unknown_range_are_refused_by_name(self, folder, tmp_path):
        paint(folder / "train" / "cat" / "0.tif", 0.5, mode="F")
        with pytest.raises(UsageError, match=r"train/cat/0.tif cannot be used: its values .*save it with 8 or 16 bits"):
            images_of(folder, tmp_path)


@pytest.fixture
def fake_cifar(monkeypatch, tmp_path):
    """CIFAR-10's files in small, with torchvision told their checksums; returns their folder's parent."""
    import torchvision.datasets

    root, lists = tmp_path / "archive", {}
    files = root / "cifar-10-batches-py"
    files.mkdir(parents=True)

    def write(name, content):
        (files / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((files / name).read_bytes()).hexdigest()]

    for name, n in (("data_batch_1", 20), ("test_batch", 10)):
        pixels = (np.arange(n * 3072) % 251).astype(np.uint8).reshape(n, 3072)
        lists[name] = write(name, {"data": pixels, "labels": [k % 10 for k in range(n)]})
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [lists["data_batch_1"]])
    monkeypatch.setattr(cifar, "test_list", [lists["test_batch"]])
    monkeypatch.setattr(cifar, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return root


@pytest.fixture
def serve(monkeypatch):
    """Return a function that serves a folder over HTTP on this machine and returns its address."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(folder):
        handler = partial(SimpleHTTPRequestHandler, directory=folder)
        monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class TestTorchvision:
    def load(self, root, tmp_path):
        dataset = load_dataset(Source("cifar10", data_root=root))
        return dataset.load(ArtifactStore(tmp_path / "cache"), SILENT)

    def test_real_files_are_read(self, fake_cifar, tmp_path):
        images = self.load(fake_cifar, tmp_path)
        assert images.train.images.shape == (20, 3, 32, 32)
        assert images.train.images.dtype == np.uint8
        assert images.test.labels.tolist() == list(range(10))
        assert images.train.images[0].ravel().tolist() == [k % 251 for k in range(3072)]

    def test_without_a_network_there_is_one_sentence_and_nothing_is_left(self, tmp_path, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        with pytest.raises(UsageError, match=r"CIFAR-10 is not in .* and cannot be downloaded .*--data-root"):
            self.load(tmp_path / "data", tmp_path)
        assert not list((tmp_path / "data").iterdir())

    def test_a_download_arrives_whole_or_not_at_all(self, fake_cifar, tmp_path, monkeypatch, serve):
        import torchvision.datasets

        folder = tmp_path / "served"
        folder.mkdir()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            tar.add(fake_cifar / "cifar-10-batches-py", arcname="cifar-10-batches-py")
        served, cifar = folder / "cifar-10-python.tar.gz", torchvision.datasets.CIFAR10
        monkeypatch.setattr(cifar, "url", f"{serve(folder)}/{served.name}")
        monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
        served.write_bytes(archive.getvalue()[:500])  # the line breaks
        with pytest.raises(UsageError, match="cannot be downloaded"):
            self.load(tmp_path / "data", tmp_path)
        assert not list((tmp_path / "data").iterdir())
        served.write_bytes(archive.getvalue())
        assert len(self.load(tmp_path / "data", tmp_path).train.labels) == 20
        assert not list((tmp_path / "data").glob(".*"))

    def test_stl10_is_reduced_to_64_pixels(self, tmp_path, monkeypatch):
        import torchvision.datasets

        folder = tmp_path / "stl10_binary"
        folder.mkdir()
        white = np.full((5, 3, 96, 96), 255, dtype=np.uint8)
        sizes = {"train": 5, "test": 3}
        listed = {}
        for part, n in sizes.items():
            white[:n].tofile(folder / f"{part}_X.bin")
            np.arange(1, n + 1, dtype=np.uint8).tofile(folder / f"{part}_y.bin")
            names = [f"{part}_X.bin", f"{part}_y.bin"]
            listed[part] = [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in names]
        (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
        monkeypatch.setattr(torchvision.datasets.STL10, "train_list", listed["train"])
        monkeypatch.setattr(torchvision.datasets.STL10, "test_list", listed["test"])
        images = load_dataset(Source("stl10", data_root=tmp_path)).load(ArtifactStore(tmp_path / "cache"), SILENT)
        assert images.train.images.shape == (5, 3, 64, 64)
        assert (images.train.images == 255).all()
        assert images.train.labels.tolist() == [0, 1, 2, 3, 4]

    def test_both_cifars_come_from_torchvision(self):
        import torchvision.datasets

        with pytest.raises(RuntimeError, match="not found or corrupted"):
            open_part("CIFAR100", "/nonexistent", True, False)
        assert issubclass(torchvision.datasets.CIFAR100, torchvision.datasets.CIFAR10)


class TestChoices:
    def test_every_dataset_lists_its_protocols(self):
        assert protocol_names("digits") == ["digits-dpm12", "digits-ddim25", "digits-dpm12-b4", "digits-ddim25-b4"]
        for kind in ("cifar10", "cifar100", "stl10", "imagefolder"):
            names = ["fast", "paper", "smoke"] if kind == "stl10" else ["fast", "paper", "brief", "smoke"]
            assert protocol_names(kind) == [*names, *[f"{name}-b4" for name in names]]
            assert title_of(kind)

    def test_the_papers_protocol(self):
        dataset = load_dataset(Source("cifar10", "paper"))
        p = dataset.protocol
        assert (p.steps, p.eta, p.guidance, p.forget_samples, p.retain_samples) == (1000, 1.0, 2.0, 500, 5000)
        assert (p.precision, p.reference, dataset.extractor) == ("fp32", RETAINED, None)
        base = dataset.base
        assert (base.steps, base.batch, base.lr, base.ema, base.label_dropout) == (800_000, 128, 2e-4, 0.9999, 0.1)
        judge = dataset.judge
        assert (judge.lr, judge.body_lr, judge.epochs, judge.pretrained) == (1e-4, 1e-5, 10, True)

    @pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
    def test_the_protocol_for_some_minutes_of_a_gpu(self, kind):
        dataset, paper = load_dataset(Source(kind, "brief")), load_dataset(Source(kind, "paper"))
        p = dataset.protocol
        assert (p.solver, p.steps, p.guidance, p.forget_samples, p.retain_samples) == ("dpm++", 20, 2.0, 200, 100)
        assert (p.precision, p.reference, dataset.features) == ("bf16", RETAINED, 128)
        assert dataset.base.network == paper.base.network
        for recipe in (dataset.judge, dataset.second, dataset.rejecting, dataset.extractor):
            steps = recipe.epochs * (50_000 // recipe.batch)
            assert steps < 1200
            assert not recipe.pretrained

    def test_it_is_for_images_of_32_pixels(self, folder):
        assert open_folder(folder, protocol="brief").protocol.name == "brief"
        with pytest.raises(UsageError, match="has no protocol 'brief'"):
            open_folder(folder, protocol="brief", image_size=64)
        with pytest.raises(UsageError, match="stl10 has no protocol 'brief'"):
            load_dataset(Source("stl10", "brief"))

    @pytest.mark.parametrize("kind", ["cifar10", "cifar100", "stl10"])
    def test_class_counts_and_sizes(self, kind):
        dataset = load_dataset(kind)
        assert dataset.num_classes == {"cifar10": 10, "cifar100": 100, "stl10": 10}[kind]
        assert len(set(dataset.class_names)) == dataset.num_classes
        assert dataset.image_shape[1] == {"cifar10": 32, "cifar100": 32, "stl10": 64}[kind]
        assert sum(dataset.train_counts) == {"cifar10": 50_000, "cifar100": 50_000, "stl10": 5000}[kind]

    @pytest.mark.parametrize(
        ("images", "epochs"), [(0, 4), (50_000, 4), (19_200, 4), (19_000, 5), (8000, 10), (2560, 30), (40, 30)]
    )
    def test_judges_see_few_images_more_often(self, images, epochs):
        """600 steps in batches of 128, in 30 epochs at most; 8,000 digits in 4 epochs left a judge at 48 to 88 %."""
        recipe = colour_profiles((3, 32, 32))["smoke"].rejecting
        fitted = recipe.fitted(True, (images // 2, images - images // 2) if images else ())
        assert (fitted.epochs, fitted.flip, recipe.fitted(False, ()).flip) == (epochs, True, False)

    def test_a_record_brings_the_epochs_of_its_judges_back(self):
        dataset = load_dataset(Source("stl10", "smoke"))
        assert dataset.judge.epochs == 16
        assert current_dataset(dataset.to_json(), "smoke").judges_digest == dataset.judges_digest

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (Source("cifar10", "papr"), "has no protocol 'papr' .did you mean paper"),
            (Source("cifar10", judge="resnet"), "has no judge 'resnet'"),
            (Source("cifar10", extractor="clip"), "has no extractor 'clip': choose from inception, own"),
            (Source("cifar10", base="x", base_steps=5), "give one of them"),
            (
                Source("cifar10", base="x", base_minutes=5.0),
                "--base and --base-minutes exclude each other",
            ),
            (Source("cifar10", base_steps=5, base_minutes=5.0), "--base-steps and --base-minutes exclude each other"),
            (Source("digits", data_root=".."), "does not apply to digits"),
            (Source("cifar"), "did you mean cifar10"),
        ],
    )
    def test_unknown_choices(self, source, message):
        with pytest.raises(UsageError, match=message):
            load_dataset(source)

    def test_a_digest_is_of_what_changes_numbers(self):
        plain = load_dataset("cifar10")
        for source in (
            Source("cifar10", "paper"), Source("cifar10", "fast-b4"), Source("cifar10", base_steps=10),
            Source("cifar10", judge="small"), Source("cifar10", extractor="own"),
            Source("cifar10", base="someone/model"), Source("cifar10", base_minutes=10.0),
            Source("cifar10", base_minutes=20.0),
        ):  # fmt: skip
            assert load_dataset(source).digest != plain.digest, source
        usual = Source("cifar10", judge="resnet34", extractor="inception", base_steps=800_000)
        assert (load_dataset(usual).digest, load_dataset(usual).choices) == (plain.digest, {})
        assert load_dataset(Source("cifar10", batch_size=3)).digest == plain.digest

    @pytest.mark.parametrize(
        "source",
        [
            Source("digits"),
            Source("cifar10", "smoke", judge="resnet34-scratch", base_steps=77, extractor="inception"),
            Source("stl10", base="someone/model"),
            Source("cifar100", "brief", base_minutes=2.5, second_judge="cifar-resnet56"),
        ],
    )  # fmt: skip
    def test_a_records_digest_can_be_computed_again(self, source):
        dataset = load_dataset(source)
        now = current_dataset(dataset.to_json(), dataset.protocol.name)
        assert (now.digest, now.judges_digest) == (dataset.digest, dataset.judges_digest)

    def test_a_time_box_is_a_choice_and_stands_for_the_steps(self):
        timed = load_dataset(Source("cifar10", base_minutes=10.0))
        assert timed.choices == {"base_minutes": 10.0}
        assert replace(timed, base=replace(timed.base, steps=1)).digest == timed.digest

    def test_a_recipe_without_a_time_box_has_the_digest_it_always_had(self):
        assert "minutes" not in load_dataset("digits").base.to_json()

    def test_a_changed_recipe_shows(self, monkeypatch):
        from unlearnbench.datasets import digits

        facts = load_dataset("digits").to_json()
        profile = digits._PROFILE
        bases = {**profile.bases, "unet": replace(profile.bases["unet"], steps=7)}
        monkeypatch.setattr(digits, "_PROFILE", replace(profile, bases=bases))
        now = current_dataset(facts, "digits-dpm12")
        assert now.digest != facts["digest"]
        assert now.judges_digest == facts["panel"]

    def test_another_judge_beside_the_first_shows_in_records_that_rest_on_it_alone(self, monkeypatch):
        from unlearnbench.datasets import digits

        profile, record = digits._PROFILE, fake_record()
        record = replace(record, cell=replace(record.cell, protocol="digits-dpm12"))
        rejecting = replace(profile.rejecting, threshold=0.5)
        monkeypatch.setattr(digits, "_PROFILE", replace(profile, rejecting=rejecting))
        assert stale_ids([record], {}) == {record.cell.id}
        del record.dataset["panel"]
        assert not stale_ids([record], {})


def test_the_reference_sets():
    labels = np.repeat(np.arange(10), 600)
    kept = reference_images(labels, (3,), RETAINED)
    assert sorted(set(labels[kept])) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len(kept) == 5400
    compat = reference_images(labels, (3,), WITHOUT_CLASS_0)
    assert sorted(set(labels[compat])) == [1, 2, 4, 5, 6, 7, 8, 9]  # class 0 is lost as well
    assert len(compat) == 4000
    assert compat[:3].tolist() == [600, 601, 602]
    assert len(reference_images(labels, (0,), WITHOUT_CLASS_0)) == 4500  # only for class 0 is it complete


def test_values_tuned_for_a_protocol_lie_over_those_of_a_dataset():
    @method(title="T", tuned={"cifar10": {"lr": 2.0, "steps": 2}, "smoke": {"steps": 3}})
    def tuned(ctx, *, lr: float = 1.0, steps: int = 1):
        pass

    spec = tuned.__unlearnbench__
    assert spec.resolve(("cifar10", "smoke"), {}) == {"lr": 2.0, "steps": 3}
    assert spec.resolve(("stl10", "smoke"), {"steps": 9}) == {"lr": 1.0, "steps": 9}
    assert spec.defaults == {"lr": 1.0, "steps": 1}


def test_every_listed_dataset_has_a_file():
    assert all(title_of(kind) for kind in DATASETS)
