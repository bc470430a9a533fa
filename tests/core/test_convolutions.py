"""A kernel of a convolution is one matrix, whose rows are the windows of its outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxmem as jm

NHWC, OIHW = ("NHWC", "HWIO", "NHWC"), ("NHWC", "OIHW", "NHWC")
X = jax.random.normal(jax.random.key(0), (1, 6, 6, 4))


def convolved(params, x):
    """Two layers of convolutions over their stack, and one whose kernel is (out, in, window)."""
    layer = lambda x, w: (lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC), 0)
    x = lax.scan(layer, x, params["stack"])[0]
    return lax.conv_general_dilated(
        x, params["grouped"], (2, 2), "VALID", dimension_numbers=OIHW, feature_group_count=2
    )


@pytest.fixture(scope="module")
def params():
    shapes = {"stack": (2, 3, 3, 4, 4), "grouped": (6, 2, 3, 3)}
    draw = lambda i, shape: jax.random.normal(jax.random.key(i), shape)
    return {name: draw(i, shape) for i, (name, shape) in enumerate(shapes.items())}


def test_its_uses_name_the_axes_of_the_window_and_of_the_inputs(params):
    uses = jm.uses(convolved, params, X)
    stack, grouped = uses["stack"][0], uses["grouped"][0]
    assert (stack.op, stack.axes, stack.inputs) == ("conv_general_dilated", (-4, -3, -2), X.shape)
    assert stack.flops == 2 * 6 * 6 * 4 * (3 * 3 * 4)
    assert (grouped.axes, grouped.flops) == ((-3, -2, -1), 2 * 2 * 2 * 6 * (3 * 3 * 2))


def test_it_is_encoded_as_rows_of_windows(params):
    uses = jm.uses(convolved, params, X)
    encoded = jm.encode(params, jm.choose(params, {".*": jm.Int(8)}), uses=uses)
    scales = {name: leaf.scale.size for name, leaf in encoded.items()}
    assert scales == {"stack": 2 * 4, "grouped": 6}  # one for each output
    output = jm.lift(convolved)(encoded, X)
    np.testing.assert_allclose(output, convolved(jm.decode(encoded), X), rtol=1e-5, atol=1e-5)


def test_its_statistics_tell_the_squares_of_the_outputs_of_any_kernel(params):
    found = jm.stats(convolved, params, [(X,)])
    squares = lambda m, d: float(m.count * jnp.einsum("nk,kl,nl", d, m.second, d))
    first = jax.tree.map(lambda m: m[0], found["stack"])  # of the layer that reads X
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 4, 4))
    y = lax.conv_general_dilated(X, kernel, (1, 1), "SAME", dimension_numbers=NHWC)
    rows = kernel.transpose(3, 0, 1, 2).reshape(4, -1)
    np.testing.assert_allclose(squares(first, rows), (y**2).sum(), rtol=1e-4)
    kernel = jnp.tile(kernel.reshape(8, 2, 3, 3)[:1], (6, 1, 1, 1))  # alike in both groups
    y = convolved(params | {"grouped": kernel}, X)
    got = squares(found["grouped"], kernel.reshape(6, -1)) / 2  # an output has one group's windows
    np.testing.assert_allclose(got, (y**2).sum(), rtol=1e-4)


def test_without_uses_the_bias_of_a_convolution_tells_its_axes():
    kernel, bias = jnp.ones((3, 3, 4, 6)), jnp.zeros(6)
    tree = {"conv": {"kernel": kernel, "bias": bias}}
    assert jm.encode(tree, {"conv/kernel": jm.Int(8)})["conv"]["kernel"].scale.size == 6
    with pytest.raises(ValueError, match="Pass uses="):
        jm.encode({"conv": {"kernel": kernel}}, {"conv/kernel": jm.Int(8)})
