"""A file of concepts: what it says becomes prompts and labels; what is wrong in it is one sentence."""

import numpy as np
import pytest
from PIL import Image

from unlearnbench.datasets import Source, load_dataset, parse_labels
from unlearnbench.datasets.concepts import read_concepts
from unlearnbench.datasets.conditions import Concept, Conditions, Prompts
from unlearnbench.errors import UsageError
from unlearnbench.run.stale import current_dataset
from unlearnbench.store.artifacts import ArtifactStore

GOOD = """
unrelated = ["a photo of a mountain"]

[[concept]]
name = "dog"
prompts = ["a photo of a dog", "a dog"]
paraphrases = ["a picture of a puppy"]
anchor = "animal"
images = "dogs"

[[concept]]
name = "cat"
prompts = ["a photo of a cat"]
anchor = "dog"
images = "cats"
"""


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("dogs", "cats"):
        (tmp_path / name).mkdir()
        for k in range(12):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name / f"{k}.png")
    (tmp_path / "pets.toml").write_text(GOOD)
    return tmp_path


def test_a_file_becomes_a_dataset_with_prompts(folder, tmp_path):
    dataset = load_dataset(Source(concepts=folder / "pets.toml", protocol="smoke", image_size=8))
    assert (dataset.kind, dataset.base.kind, dataset.class_names) == ("concepts", "text", ("dog", "cat"))
    assert dataset.name.startswith("pets-")
    assert dataset.prompts.texts == (
        "a photo of a dog", "a photo of a cat", "", "a dog", "a picture of a puppy", "a photo of a animal",
        "a photo of a mountain",
    )  # fmt: skip
    images = dataset.load(ArtifactStore(tmp_path / "cache"), lambda *_: None)
    assert len(images.train.labels) + len(images.test.labels) == 24
    assert images.train.images.shape[1:] == (3, 8, 8)
    assert set(images.test.labels.tolist()) == {0, 1}


def test_labels_stand_for_prompts():
    prompts = Prompts(
        (Concept("dog", ("a dog", "one dog"), ("a puppy",), "animal"), Concept("cat", ("a cat",), (), "dog")), ("sky",)
    )
    conditions = Conditions("pets", ("dog", "cat"), (3, 8, 8), prompts=prompts)
    assert (prompts.training(0), prompts.training(1)) == ((0, 3), (1,))
    assert [prompts.texts[label] for label in conditions.paraphrases(0)] == ["a puppy"]
    assert conditions.paraphrases(1) == ()
    assert prompts.texts[conditions.anchor(0, [1])] == "a animal"
    assert conditions.anchor(1, [0]) == 0  # the name of another concept is that concept
    assert [prompts.texts[label] for label in conditions.unrelated] == ["sky"]
    assert conditions.spread([0, 1, 0, 0, 4]) == [0, 1, 3, 0, 4]
    assert Conditions.from_json(conditions.to_json()) == conditions
    assert conditions.null_class == 2


def test_classes_without_prompts_are_their_own_labels():
    conditions = Conditions("digits", tuple("012345"), (1, 8, 8))
    assert conditions.spread([3, 3, 5]) == [3, 3, 5]
    assert (conditions.paraphrases(3), conditions.unrelated) == ((), ())
    assert [conditions.anchor(c, [1, 4]) for c in (0, 3, 5)] == [1, 4, 1]
    assert Conditions.from_json(conditions.to_json()) == conditions


def test_a_record_of_a_model_on_labels_is_compared_without_prompts(folder):
    dataset = load_dataset(Source(concepts=folder / "pets.toml", protocol="smoke", image_size=8, model="dit"))
    assert current_dataset(dataset.to_json(), "smoke").digest == dataset.digest


def test_a_record_of_it_is_compared_with_its_prompts(folder):
    source = Source(concepts=folder / "pets.toml", protocol="smoke", image_size=8)
    dataset = load_dataset(source)
    assert current_dataset(dataset.to_json(), "smoke").digest == dataset.digest
    (folder / "pets.toml").write_text(GOOD.replace("a picture of a puppy", "a picture of a hound"))
    assert load_dataset(source).digest != dataset.digest


PUPPY, CAT = "a picture of a puppy", '["a photo of a cat"]'
BAD = {
    "not TOML": ("[[concept]", "it is not TOML"),
    "one concept": (GOOD[: GOOD.rindex("[[concept]]")], r"it needs two tables \[\[concept\]\] or more"),
    "no prompts": (GOOD.replace(f"prompts = {CAT}\n", ""), "a concept lacks prompts: give name, prompts, images"),
    "an unknown key": (GOOD.replace("anchor =", "anker ="), "a concept has anker, but it can have name"),
    "a text for a list": (GOOD.replace(CAT, CAT.strip("[]")), "prompts must be a list of texts"),
    "an empty prompt": (GOOD.replace('"a dog"', '" "'), "prompts must be a list of texts, none of them empty"),
    "one name twice": (GOOD.replace('"cat"', '"dog"').replace("of a cat", "of a dog"), "two concepts are called dog"),
    "a prompt without the name": (GOOD.replace("a photo of a cat", "a kitten"), "the first prompt of cat must contain"),
    "held out and not": (GOOD.replace(PUPPY, "a dog"), "a training prompt and held out at once"),
    "unrelated as a number": (GOOD.replace('["a photo of a mountain"]', "3"), "unrelated must be a list of texts"),
    "a folder that is missing": (GOOD.replace('"cats"', '"absent"'), "the images of cat should lie in absent"),
}


@pytest.mark.parametrize("case", BAD, ids=[name.replace(" ", "-") for name in BAD])
def test_what_is_wrong_is_one_sentence(folder, case):
    text, message = BAD[case]
    (folder / "pets.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        load_dataset(Source(concepts=folder / "pets.toml", protocol="smoke", image_size=8))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_options_that_exclude_it(folder):
    with pytest.raises(UsageError, match="it cannot be read"):
        read_concepts(folder / "absent.toml")
    with pytest.raises(UsageError, match="needs --concepts FILE"):
        load_dataset(Source("concepts"))
    with pytest.raises(UsageError, match="leave out --dataset cifar10"):
        load_dataset(Source("cifar10", concepts=folder / "pets.toml"))
    with pytest.raises(UsageError, match="the file names the folders"):
        load_dataset(Source(concepts=folder / "pets.toml", data_root=folder))


def test_judges_see_mirror_images_only_where_methods_do(folder):
    concepts = load_dataset(Source(concepts=folder / "pets.toml", protocol="smoke", image_size=8))
    colours = load_dataset(Source("cifar10", "smoke"))
    for dataset, mirrored in ((concepts, False), (colours, True)):
        judges = dataset.judge, dataset.second, dataset.rejecting, dataset.extractor
        assert [judge.flip for judge in judges] == [mirrored] * 4


def test_latents_are_not_clipped():
    for model, clipped in (("unet", True), ("dit", False), ("text", False)):
        source = Source("cifar10", "smoke", model=model)
        assert load_dataset(source).protocol.clip_x0 is clipped


def test_models_that_take_labels_have_no_prompts():
    assert load_dataset("digits").prompts is None
    assert load_dataset(Source("digits", model="dit")).prompts is None
    text = load_dataset(Source("digits", model="text"))
    assert (text.name, text.offers) == ("digits-text", {"prompts"})
    with pytest.raises(UsageError, match="digits has no model 'dot'"):
        load_dataset(Source("digits", model="dot"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [("0=7", "no label for 1"), ("cat=3", "--labels cat=3: write NAME=LABEL"), ("0=x", "write NAME=LABEL"),
     (",".join(f"{c}={c // 2}" for c in range(10)), "one label to two classes")],
)  # fmt: skip
def test_labels_that_do_not_name_every_class_once(labels, message):
    with pytest.raises(UsageError, match=message):
        parse_labels(labels, "0123456789", "a model")
    with pytest.raises(UsageError, match="name it with --base"):
        load_dataset(Source("digits", labels=labels))


def test_retention_of_some_classes_alone():
    from unlearnbench.store.cell import Target

    dataset = load_dataset("digits")
    some = dataset.evaluating([1, 2, 3])
    assert some.measured(Target((3,))) == (1, 2)
    assert dataset.measured(Target((3,))) == (0, 1, 2, 4, 5, 6, 7, 8, 9)
    assert some.name.startswith("digits-3of10-")
    assert some.digest != dataset.digest
    assert some.protocol.retain_samples == 64  # two per feature, of two classes at least
    assert current_dataset(some.to_json(), some.protocol.name).digest == some.digest
    assert dataset.evaluating([]) is dataset
