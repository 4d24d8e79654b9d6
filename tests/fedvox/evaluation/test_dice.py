import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedvox.evaluation.dice import dice_counts

LABELS = arrays(np.int64, (3, 4, 5), elements=st.integers(0, 3))


@given(LABELS, LABELS)
def test_dice_equals_the_set_formula_per_structure(reference, prediction):
    found = dice_counts(torch.tensor(reference), torch.tensor(prediction), 4).dice().numpy()
    for k in range(4):
        a = {tuple(v) for v in np.argwhere(reference == k)}
        b = {tuple(v) for v in np.argwhere(prediction == k)}
        expected = 2 * len(a & b) / (len(a) + len(b)) if a or b else np.nan
        assert found[k] == pytest.approx(expected, nan_ok=True)


def test_a_hallucinated_structure_scores_zero_and_an_absent_one_is_undefined():
    reference = torch.zeros(2, 2, 2, dtype=torch.int64)
    prediction = reference.clone()
    prediction[0, 0, 0] = 1
    found = dice_counts(reference, prediction, 3).dice()
    assert found[1] == 0
    assert torch.isnan(found[2])


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ"):
        dice_counts(torch.zeros(2, 2, 2), torch.zeros(2, 2, 3), 2)
