"""Metrics against independent implementations, on fixed random arrays."""

import numpy as np
import pytest
import scipy.linalg
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnbench import NO_OBJECT
from unlearnbench.errors import Unmeasurable
from unlearnbench.plugins.registry import Registry
from unlearnbench.store.cell import Cell

REGISTRY = Registry()
MODULES = {plugin.name: plugin.load_module() for plugin in REGISTRY.plugins("metric")}
CELL = Cell("digits", "p", "m", {}, 2, 0)
NEIGHBOURS = ("precision", "recall", "density", "coverage")


def score(name, **needs):
    return REGISTRY.metric(name).function(**needs)


def of_features(name, generated, real):
    """A metric of two feature arrays, whatever it calls them."""
    names = ("forget_features", "forget_reference_features")
    if name != "forget_density":
        names = ("retain_features", "reference_features")
    return score(name, **dict(zip(names, (generated, real), strict=True)))


def normal(n, dimensions=4, seed=0, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).standard_normal((n, dimensions))


def shuffled(rows, seed=5):
    return np.random.default_rng(seed).permutation(rows)


def frechet(a, b):
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root).real


# --- verdicts


VERDICTS = st.lists(st.sampled_from([NO_OBJECT, 0, 1, 2, 3]), min_size=1, max_size=40).map(np.array)


def test_forgotten_is_everything_but_the_forget_class():
    verdicts = np.array([2, 2, 2, 0, NO_OBJECT])
    assert score("forgotten", forget_verdicts=verdicts, cell=CELL)[:2] == (40.0, 5)
    assert score("no_object", forget_verdicts=verdicts)[:2] == (20.0, 5)
    assert score("other_class", forget_verdicts=verdicts, cell=CELL)[:2] == (20.0, 5)


@settings(deadline=None)
@given(VERDICTS)
def test_no_object_and_other_class_add_up_to_forgotten(verdicts):
    whole = score("forgotten", forget_verdicts=verdicts, cell=CELL).value
    parts = score("no_object", forget_verdicts=verdicts), score("other_class", forget_verdicts=verdicts, cell=CELL)
    assert whole == pytest.approx(parts[0].value + parts[1].value)
    assert all(0 <= share <= 100 for share in (whole, *(part.value for part in parts)))


def retained(forget, verdicts, labels, classes=4):
    return score(
        "retained", forget_verdicts=forget, retain_verdicts=verdicts, retain_labels=labels, cell=CELL,
        num_classes=classes,
    )  # fmt: skip


def test_retained_and_its_confusion_are_those_of_sklearn():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 3], 30)
    verdicts, forget = random.integers(-1, 4, 90), random.integers(-1, 4, 25)
    found = retained(forget, verdicts, labels)
    assert found[:2] == (pytest.approx(100 * sklearn.metrics.accuracy_score(labels, verdicts)), 90)
    asked, seen = np.concatenate([np.full(25, 2), labels]), np.concatenate([forget, verdicts])
    theirs = sklearn.metrics.confusion_matrix(asked, seen, labels=[0, 1, 2, 3, NO_OBJECT])
    np.testing.assert_array_equal(found.detail["confusion"], theirs[:4])
    assert type(found.detail["confusion"][0][0]) is int
    order = random.permutation(90)
    assert retained(forget[::-1], verdicts[order], labels[order]) == found


def test_no_object_does_not_count_as_retained():
    labels = np.array([0, 1])
    assert retained(np.array([2]), np.array([0, NO_OBJECT]), labels)[:2] == (50.0, 2)
    assert retained(np.array([2]), np.full(2, NO_OBJECT), labels).value == 0


@settings(deadline=None)
@given(VERDICTS)
def test_the_confusion_keeps_every_sample(verdicts):
    found = retained(verdicts, verdicts, np.zeros(len(verdicts), dtype=np.int64))
    counts = np.array(found.detail["confusion"])
    assert counts.shape == (4, 5)
    assert counts.sum(axis=1).tolist() == [len(verdicts), 0, len(verdicts), 0]
    assert 0 <= found.value <= 100


# --- the second judge


def test_ua_of_the_second_judge():
    assert score("ua_second", forget_second=np.array([2, 2, 2, 0]), cell=CELL)[:2] == (25.0, 4)


def test_agreement_weighs_every_sample_alike():
    found = score(
        "judge_agreement", forget_probs=np.eye(4)[[2, 0]], retain_probs=np.eye(4)[[0, 0, 1, 3, 3, 3]],
        forget_second=np.array([2, 1]), retain_second=np.array([0, 0, 1, 3, 3, 0]),
    )  # fmt: skip
    assert found[:2] == (75.0, 8)
    assert found.detail == {"forget": 50.0, "retain": pytest.approx(500 / 6)}


# --- KID


def kid_by_hand(x, y):
    def kernel(a, b):
        return sum((float(a @ b) / len(a) + 1) ** 3 for a, b in zip(a, b, strict=True))

    def pairs(a, b, same):
        total = sum(kernel([row] * len(b), b) for row in a) - (kernel(a, a) if same else 0)
        return total / (len(a) * (len(b) - same))

    return pairs(x, x, True) + pairs(y, y, True) - 2 * pairs(x, y, False)


def test_kid_is_the_unbiased_mmd_by_hand():
    x, y = normal(40), normal(55, seed=1, mean=0.3)
    found = of_features("kid", x, y)
    assert found[:2] == (pytest.approx(kid_by_hand(x, y), abs=1e-6), 40)
    assert of_features("kid", shuffled(x), shuffled(y)).value == pytest.approx(found.value, abs=1e-12)


def test_kid_in_parts_is_kid_at_once(monkeypatch):
    x, y = normal(40), normal(55, seed=1)
    whole = of_features("kid", x, y).value
    monkeypatch.setattr(MODULES["kid"], "ROWS", 7)
    assert of_features("kid", x, y).value == pytest.approx(whole, abs=1e-12)


def test_kid_is_what_torch_fidelity_takes_the_mean_of():
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = normal(300), normal(300, seed=1, mean=0.2)
    whole = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=1, kid_subset_size=300, verbose=False
    )
    parts = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=400, kid_subset_size=150, verbose=False
    )
    ours = of_features("kid", x, y).value
    assert ours == pytest.approx(whole["kernel_inception_distance_mean"], abs=1e-9)
    error = parts["kernel_inception_distance_std"] / np.sqrt(400)
    assert abs(ours - parts["kernel_inception_distance_mean"]) < 4 * error


def test_kid_of_equal_distributions_is_about_zero_whatever_the_sizes():
    values = [of_features("kid", normal(20, seed=k), normal(200, seed=99)).value for k in range(60)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(60)
    assert min(values) < 0


# --- precision, recall, density, coverage


def distance(a, b):
    return float(np.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True))))


def radii_by_hand(points, k):
    return [sorted(distance(a, b) for j, b in enumerate(points) if j != i)[k - 1] for i, a in enumerate(points)]


def share_inside(points, centres, k=3):
    radii = radii_by_hand(centres, k)
    return np.mean([any(distance(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points])


def density_by_hand(generated, real, k=5):
    radii = radii_by_hand(real, k)
    return sum(distance(y, x) < r for y in generated for x, r in zip(real, radii, strict=True)) / (k * len(generated))


def coverage_by_hand(generated, real, k=5):
    radii = radii_by_hand(real, k)
    return np.mean([any(distance(y, x) < r for y in generated) for x, r in zip(real, radii, strict=True)])


BY_HAND = {
    "precision": share_inside,
    "recall": lambda generated, real: share_inside(real, generated),
    "density": density_by_hand,
    "coverage": coverage_by_hand,
    "forget_density": density_by_hand,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_neighbours_are_those_found_by_hand(name, monkeypatch):
    generated, real = normal(60, seed=1, mean=0.6, scale=0.8), normal(80)
    found = of_features(name, generated, real)
    assert found.value == pytest.approx(BY_HAND[name](generated, real), abs=1e-6)
    assert 0 < found.value != of_features(name, real, generated).value
    assert found.n == (80 if name in {"recall", "coverage"} else 60)
    assert of_features(name, shuffled(generated), shuffled(real)) == found
    monkeypatch.setattr(MODULES[name], "ROWS", 7)
    assert of_features(name, generated, real).value == pytest.approx(found.value, abs=1e-7)


def test_mode_collapse_is_high_fidelity_and_low_diversity():
    """One tight mode inside one of two real modes; with generated and real exchanged it would be the other way."""
    real = np.concatenate([normal(100), normal(100, seed=1, mean=20.0)])
    collapsed = normal(100, seed=2, scale=0.1)
    values = {name: of_features(name, collapsed, real).value for name in NEIGHBOURS}
    assert values["precision"] == 1.0
    assert values["density"] > 1
    assert values["recall"] < 0.1
    assert values["coverage"] < 0.4
    swapped = {name: of_features(name, real, collapsed).value for name in NEIGHBOURS}
    assert swapped["precision"] < 0.1
    assert swapped["recall"] == 1.0


def test_one_distribution_has_density_one_and_the_expected_coverage():
    real, generated = normal(1200), normal(1200, seed=1)
    assert of_features("density", generated, real).value == pytest.approx(1, abs=0.05)
    assert of_features("coverage", generated, real).value == pytest.approx(1 - 0.5**5, abs=0.02)
    assert of_features("precision", generated, real).value > 0.7
    assert of_features("recall", generated, real).value > 0.7


def test_the_real_images_themselves_are_dense_and_cover():
    real = normal(300)
    assert of_features("density", real, real).value == 1
    assert of_features("coverage", real, real).value == 1
    assert of_features("forget_density", real, real).value == 1
    assert of_features("forget_density", real + 50, real).value == 0


@pytest.mark.parametrize("name", [*NEIGHBOURS, "kid"])
def test_of_a_large_set_a_fixed_choice_enters(name, monkeypatch):
    whole = of_features(name, normal(30), normal(40, seed=1))
    monkeypatch.setattr(MODULES[name], "at_most", lambda features: features[:20])
    part = of_features(name, normal(30), normal(40, seed=1))
    monkeypatch.undo()
    assert part == of_features(name, normal(30)[:20], normal(40, seed=1)[:20]) != whole


# --- where the forget class was


def ratio_by_hand(samples, forget, retained):
    quotients = [min(distance(y, x) for x in forget) / min(distance(y, x) for x in retained) for y in samples]
    return np.median(quotients)


def distance_ratio(samples, forget, retained):
    return score(
        "distance_ratio", forget_features=samples, forget_reference_features=forget, reference_features=retained
    )


def test_distance_ratio_by_hand_and_in_any_order():
    samples, forget, others = normal(30, mean=0.5), normal(40, seed=1), normal(40, seed=2, mean=1.0)
    found = distance_ratio(samples, forget, others)
    assert found == (pytest.approx(ratio_by_hand(samples, forget, others), abs=1e-6), 30, None)
    assert distance_ratio(shuffled(samples), shuffled(forget), shuffled(others)).value == pytest.approx(found.value)
    assert distance_ratio(samples, others, forget).value == pytest.approx(ratio_by_hand(samples, others, forget))


def test_the_distance_ratio_takes_as_many_images_of_either_side():
    samples, forget, others = normal(30), normal(40, seed=1), normal(400, seed=2)
    chosen = MODULES["distance_ratio"].at_most(others, 40)
    assert len(np.unique(chosen, axis=0)) == 40
    assert distance_ratio(samples, forget, others).value == pytest.approx(ratio_by_hand(samples, forget, chosen))
    chosen = MODULES["distance_ratio"].at_most(others, 40)
    assert distance_ratio(samples, others, forget).value == pytest.approx(ratio_by_hand(samples, chosen, forget))


def test_a_larger_set_of_one_kind_is_not_nearer_for_being_larger():
    values = [
        distance_ratio(normal(100, seed=k), normal(100, seed=100 + k), normal(900, seed=200 + k)).value
        for k in range(20)
    ]
    assert np.mean(values) == pytest.approx(1, abs=0.05)


def test_copies_have_a_ratio_too():
    forget, others = normal(20), normal(20, seed=1, mean=9.0)
    ratios = MODULES["distance_ratio"].ratios
    assert ratios(forget[:3], forget, others).tolist() == [0, 0, 0]
    assert ratios(others[:3], forget, others).tolist() == [np.inf] * 3
    assert ratios(forget[:3], forget, forget).tolist() == [1, 1, 1]
    mixed = np.concatenate([others[:2], forget[:3]])
    assert distance_ratio(mixed, forget, others).value == 0
    with pytest.raises(Unmeasurable, match="half of the samples or more are copies"):
        distance_ratio(others, forget, others)


@pytest.mark.parametrize("kind", ["itself", "another", "noise"])
def test_digits_tell_the_class_another_and_noise_apart(kind):
    from unlearnbench.datasets import digits

    images = digits.load(None, None)
    pixels, labels = images.train.images.reshape(-1, 64) / 255.0, images.train.labels
    held_out = images.test.images.reshape(-1, 64) / 255.0
    forget = pixels[labels == 3]
    samples = {
        "itself": held_out[images.test.labels == 3],
        "another": held_out[images.test.labels == 6],
        "noise": np.random.default_rng(0).integers(0, 256, (100, 64)) / 255,
    }[kind]
    density = score("forget_density", forget_features=samples, forget_reference_features=forget).value
    ratio = distance_ratio(samples, forget, pixels[labels != 3]).value
    low, high = {"itself": (0.7, 1.3), "another": (0, 0.01), "noise": (0, 0)}[kind]
    assert low <= density <= high
    low, high = {"itself": (0.2, 0.7), "another": (1.3, 4), "noise": (0.9, 1.1)}[kind]
    assert low <= ratio <= high


# --- FID by class and to infinity


def by_class(features, labels, real, real_labels):
    return score(
        "worst_class_fid", retain_features=features, retain_labels=labels, reference_features=real,
        reference_labels=real_labels,
    )  # fmt: skip


def test_the_worst_class_is_that_of_scipy():
    labels, real_labels = np.repeat([0, 1, 3], [40, 30, 50]), np.repeat([0, 1, 3], 60)
    features, real = normal(120) + labels[:, None], normal(180, seed=1)
    found = by_class(features, labels, real, real_labels)
    theirs = {str(c): frechet(features[labels == c], real[real_labels == c]) for c in (0, 1, 3)}
    assert found.detail == {"by_class": pytest.approx(theirs, abs=1e-6)}
    assert (found.value, found.n) == (found.detail["by_class"]["3"], 30)
    order, real_order = shuffled(np.arange(120)), shuffled(np.arange(180))
    again = by_class(features[order], labels[order], real[real_order], real_labels[real_order])
    assert again.detail["by_class"] == pytest.approx(theirs, abs=1e-6)


def test_a_class_with_too_few_images_on_either_side_is_refused():
    labels, few = np.repeat([0, 1, 3], 20), np.repeat([0, 1, 3], [27, 4, 29])
    features, real = normal(60), normal(60, seed=1)
    with pytest.raises(Unmeasurable, match=r"4 generated images of a class .* use more than 4"):
        by_class(features, few, real, labels)
    with pytest.raises(Unmeasurable, match=r"4 reference images of a class .* use more than 4"):
        by_class(features, labels, real, few)
    with pytest.raises(Unmeasurable, match="0 reference images"):
        by_class(features, labels, real[labels > 0], labels[labels > 0])


def test_fid_infinity_is_the_intercept_of_the_line_through_its_points():
    generated, real = normal(200), normal(400, seed=1, mean=0.2)
    found = of_features("fid_infinity", generated, real)
    sizes, values = found.detail["sizes"], found.detail["fid"]
    assert (len(sizes), sizes[0], sizes[-1], found.n) == (15, 100, 200, 200)
    assert values[-1] == pytest.approx(frechet(generated, real), abs=1e-6)
    design = np.stack([np.ones(15), 1 / np.array(sizes)], axis=1)
    assert found.value == pytest.approx(np.linalg.lstsq(design, np.array(values))[0][0], abs=1e-6)
    assert of_features("fid_infinity", generated, real) == found


def test_fid_infinity_takes_away_bias():
    real = normal(20_000, dimensions=10, seed=99)
    found = [of_features("fid_infinity", normal(100, 10, seed=k), real) for k in range(20)]
    assert abs(np.mean([one.value for one in found])) < 0.3 * np.mean([one.detail["fid"][-1] for one in found])


def test_fid_infinity_of_an_exact_line_is_its_intercept():
    sizes = [50, 60, 80, 100]
    assert MODULES["fid_infinity"].intercept(sizes, [3 + 7 / n for n in sizes]) == pytest.approx(3)


# --- all of them


@pytest.mark.parametrize(
    ("name", "generated", "real", "told"),
    [
        ("kid", 1, 9, "1 generated images make no pair: use at least 2"),
        ("kid", 9, 1, "1 reference images make no pair"),
        ("precision", 3, 9, "3 generated images have no 3 neighbours each: use more than 3"),
        ("precision", 9, 3, "3 reference images"),
        ("recall", 3, 9, "3 generated images"),
        ("recall", 9, 3, "3 reference images"),
        ("density", 1, 5, "5 reference images have no 5 neighbours each: use more than 5"),
        ("coverage", 1, 5, "5 reference images"),
        ("forget_density", 1, 5, "5 real images of the forget class"),
        ("fid_infinity", 9, 9, "9 generated images are too few for 4 features: use 10"),
        ("fid_infinity", 10, 4, "4 reference images are too few for 4 features: use 5"),
    ],
)
def test_too_few_images_are_refused_and_one_more_is_enough(name, generated, real, told):
    with pytest.raises(Unmeasurable, match=told):
        of_features(name, normal(generated), normal(real, seed=1))
    enough = {"generated": generated + told.startswith(str(generated)), "real": real + told.startswith(str(real))}
    if generated != real:
        assert np.isfinite(of_features(name, normal(enough["generated"]), normal(enough["real"], seed=1)).value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("name", [*BY_HAND, "kid", "fid", "fid_infinity", "worst_class_fid", "distance_ratio"])
def test_features_that_are_not_finite_are_refused(name, side, bad):
    sides = [normal(20), normal(20, seed=1)]
    sides[side][3, 2] = bad
    labels = np.zeros(20, dtype=np.int64)
    with pytest.raises(Unmeasurable, match="not finite"):
        if name == "worst_class_fid":
            by_class(sides[0], labels, sides[1], labels)
        elif name == "distance_ratio":
            distance_ratio(*sides, normal(20, seed=2))
        else:
            of_features(name, *sides)


def test_the_distance_ratio_needs_images_of_every_side():
    sides = [normal(5), normal(5, seed=1), normal(5, seed=2)]
    for k, told in enumerate(("generated", "of the forget class", "of the retained classes")):
        with pytest.raises(Unmeasurable, match=told):
            distance_ratio(*(side[: 0 if j == k else 5] for j, side in enumerate(sides)))
        with pytest.raises(Unmeasurable, match=f"{told}.* not finite"):
            distance_ratio(*(side * (np.nan if j == k else 1) for j, side in enumerate(sides)))


def test_scores_are_plain_numbers():
    x, y = normal(20), normal(20, seed=1)
    labels = np.repeat([0, 1], 10)
    verdicts = np.zeros(20, dtype=np.int64)
    found = [
        *(of_features(name, x, y) for name in (*BY_HAND, "kid", "fid_infinity")),
        by_class(x, labels, y, labels),
        distance_ratio(x, y, normal(20, seed=2)),
        retained(verdicts, verdicts, labels),
        score("forgotten", forget_verdicts=verdicts, cell=CELL),
        score("no_object", forget_verdicts=verdicts),
        score("other_class", forget_verdicts=verdicts, cell=CELL),
        score("ua_second", forget_second=verdicts, cell=CELL),
        score("instead_noise", forget_samples=np.zeros((20, 1, 8, 8), np.uint8), forget_verdicts=verdicts, cell=CELL),
    ]
    assert {(type(one.value), type(one.n)) for one in found} == {(float, int)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(6, 40), st.integers(6, 40), st.floats(0, 5))
def test_shares_of_neighbours_are_shares(seed, n, m, mean):
    generated, real = normal(n, seed=seed, mean=mean), normal(m, seed=seed + 1)
    for name in ("precision", "recall", "coverage"):
        assert 0 <= of_features(name, generated, real).value <= 1
    assert 0 <= of_features("density", generated, real).value <= m / 5
