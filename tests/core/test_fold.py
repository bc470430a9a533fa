"""A fold says how a weight of any shape lies in a matrix, also after a transpose or reshape."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmem.core.fold import Fold

sizes = st.integers(0, 4)


@st.composite
def weights_and_axes(draw):
    shape = tuple(draw(st.lists(sizes, min_size=1, max_size=4)))
    axes = draw(st.sets(st.integers(-len(shape), len(shape) - 1), min_size=1))
    axes = {a % len(shape): a for a in axes}.values()  # -1 and the last are one axis
    return shape, tuple(axes)


@st.composite
def folds(draw):
    """A fold and the sizes of its stack axes, transposed in any way."""
    lead, kept, summed = (tuple(draw(st.lists(sizes, max_size=2))) for _ in range(3))
    order = draw(st.permutations(range(-len(kept) - len(summed), 0)))
    fold = Fold(kept, summed, tuple(order))
    return fold.permuted(tuple(draw(st.permutations(range(len(lead) + len(order)))))), lead


@st.composite
def reshapes(draw, shape):
    """Another shape of the same size: axes split, merged with the next, or of length 1 added."""
    new = []
    for n in shape:
        change = draw(st.sampled_from(["keep", "split", "merge", "one"]))
        if change == "merge" and new:
            new[-1] *= n
        else:
            new += {"split": [2, n // 2] if n % 2 == 0 else [n], "one": [1, n]}.get(change, [n])
    return tuple(new)


def matrix_of(fold, lead):
    return np.arange(math.prod(lead) * fold.n * fold.k).reshape(*lead, fold.n, fold.k)


@settings(max_examples=50, deadline=None)
@given(weights_and_axes())
def test_unfold_undoes_from_weight(shape_and_axes):
    shape, axes = shape_and_axes
    w = np.arange(math.prod(shape)).reshape(shape)
    matrix, fold = Fold.from_weight(jnp.asarray(w), axes)
    assert matrix.shape[-2:] == (fold.n, fold.k)
    assert fold.shape(matrix.shape[:-2]) == shape
    np.testing.assert_array_equal(fold.unfold(np.asarray(matrix)), w)


@settings(max_examples=50, deadline=None)
@given(weights_and_axes())
def test_a_row_of_the_matrix_holds_what_one_output_sums_over(shape_and_axes):
    shape, axes = shape_and_axes
    w = jax.ShapeDtypeStruct(shape, jnp.float32)
    matrix = jax.eval_shape(lambda w: Fold.from_weight(w, axes)[0], w)
    assert matrix.shape[-1] == math.prod(shape[a] for a in axes)


@given(folds(), st.data())
def test_permuted_is_the_transpose(fold_and_lead, data):
    fold, lead = fold_and_lead
    w = fold.unfold(matrix_of(fold, lead))
    axes = tuple(data.draw(st.permutations(range(w.ndim))))
    moved = fold.permuted(axes)
    np.testing.assert_array_equal(moved.unfold(matrix_of(fold, lead)), w.transpose(axes))
    assert moved.shape(lead) == w.transpose(axes).shape


@settings(max_examples=300)
@given(folds(), st.data())
def test_regrouped_is_the_reshape_or_says_it_cannot(fold_and_lead, data):
    fold, lead = fold_and_lead
    w = fold.unfold(matrix_of(fold, lead))
    new = data.draw(reshapes(w.shape))
    there = fold.regrouped(w.shape, new)
    if there is not NotImplemented:
        np.testing.assert_array_equal(there.unfold(matrix_of(fold, lead)), w.reshape(new))
        back = there.regrouped(new, w.shape)
        assert back is NotImplemented or back.shape(lead) == w.shape


@pytest.mark.parametrize(
    "shape, axes, new",
    [
        ((8, 12), (-2,), (8, 3, 4)),  # heads out of a projection
        ((8, 3, 4), (-3,), (8, 12)),
        ((3, 4, 8), (-3, -2), (12, 8)),  # heads into an output projection
        ((12, 8), (-2,), (3, 4, 8)),
        ((5, 8, 12), (-2,), (5, 8, 3, 4)),  # a stack of the first
        ((5, 3, 4, 8), (-3, -2), (5, 12, 8)),
        ((8, 12), (-2,), (1, 8, 12)),
        ((8, 1, 12), (-3,), (8, 12)),
        ((10, 8), (-1,), (10, 2, 4)),
    ],
)
def test_the_reshapes_that_models_make_stay_encoded(shape, axes, new):
    w = np.arange(math.prod(shape)).reshape(shape)
    matrix, fold = Fold.from_weight(jnp.asarray(w), axes)
    again = fold.regrouped(shape, new)
    np.testing.assert_array_equal(again.unfold(np.asarray(matrix)), w.reshape(new))


def test_a_reshape_across_the_sides_is_refused():
    _, fold = Fold.from_weight(jnp.zeros((8, 12)), (-2,))
    assert fold.regrouped((8, 12), (96,)) is NotImplemented
    assert fold.regrouped((8, 12), (4, 24)) is NotImplemented


def test_a_stack_is_not_merged_into_the_weight():
    _, fold = Fold.from_weight(jnp.zeros((5, 8, 12)), (-2,))
    assert fold.regrouped((5, 8, 12), (40, 12)) is NotImplemented


@pytest.mark.parametrize("axes", [(), (2,), (-3,), (0, -2), (1, 1)])
def test_axes_that_are_not_axes_are_refused(axes):
    with pytest.raises(ValueError, match="distinct axes"):
        Fold.from_weight(jnp.zeros((3, 4)), axes)
