"""What metrics of feature arrays share."""

import numpy as np
import pytest

from unlearnbench import Unmeasurable, at_most, check_features


def test_of_many_rows_a_fixed_choice_is_taken():
    rows = np.arange(50.0)[:, None]
    chosen = at_most(rows, 20)
    np.testing.assert_array_equal(chosen, at_most(rows, 20))
    assert len(np.unique(chosen)) == 20
    assert at_most(rows, 50) is rows
    assert len(at_most(np.zeros((10_001, 1)))) == 10_000


@pytest.mark.parametrize(
    ("features", "asked", "told"),
    [
        (np.zeros((0, 2)), (), "there are no generated images"),
        (np.zeros((1, 2)), (2, "make no pair: use at least 2"), "1 generated images make no pair: use at least 2"),
        (np.array([[0, np.nan]]), (), "some features of the generated images are not finite"),
        (np.array([[0, -np.inf]]), (), "some features of the generated images are not finite"),
    ],
)
def test_what_no_number_can_rest_on_is_refused(features, asked, told):
    with pytest.raises(Unmeasurable, match=f"^{told}$"):
        check_features(features, "generated images", *asked)


def test_enough_finite_rows_pass():
    check_features(np.zeros((1, 2)), "generated images")
    check_features(np.zeros((2, 2)), "generated images", 2, "make no pair")
