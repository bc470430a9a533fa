"""A quantization_config is read whole, and what is not computed is refused by name."""

import copy

import numpy as np
import pytest

from jaxmem.core.lazy import Lazy
from jaxmem.formats.compressed_tensors import read

ARGS = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": ARGS}},
}


def tensors(codes, scale, module="a.q_proj", **others):
    parts = {"weight": codes, "weight_scale": scale} | others
    lazy = lambda a: Lazy(a.shape, a.dtype, lambda _: a)
    return {f"{module}.{name}": lazy(np.asarray(a)) for name, a in parts.items()}


def codes_of(most, shape=(4, 6)):
    return np.random.default_rng(0).integers(-most - 1, most + 1, shape).astype(np.int8)


@pytest.mark.parametrize(
    "target", ["a.q_proj", "q_proj", r"re:.*q_proj$"], ids=["name", "end of the name", "regex"]
)
@pytest.mark.parametrize("first", [True, False])
def test_the_most_exact_target_decides_whatever_the_order(target, first):
    exact = {"targets": [target], "weights": ARGS}
    by_class = {"targets": ["Linear"], "weights": ARGS | {"num_bits": 4}}
    groups = [exact, by_class] if first else [by_class, exact]
    config = CONFIG | {"config_groups": {f"group_{i}": g for i, g in enumerate(groups)}}
    codes, scale = codes_of(127), np.full((4, 1), 0.5, np.float32)
    _, matrices = read(tensors(codes, scale), config)
    np.testing.assert_array_equal(matrices["a.q_proj"].tensor().load(), codes * scale)


def test_a_name_comes_before_its_end_and_that_before_a_regular_expression():
    targets = ["re:a.*", "q_proj", "a.q_proj"]
    sizes = [6, 3, 2]
    group = lambda t, n: {
        "targets": [t], "weights": ARGS | {"strategy": "group", "group_size": n}
    }  # fmt: skip
    for end in (1, 2, 3):
        groups = {f"group_{i}": group(t, n) for i, (t, n) in enumerate(zip(targets[:end], sizes))}
        scale = np.ones((4, 6 // sizes[end - 1]), np.float32)
        _, matrices = read(tensors(codes_of(127), scale), CONFIG | {"config_groups": groups})
        assert matrices["a.q_proj"].group == sizes[end - 1]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_and_one_zero_point_serve_the_whole_matrix(shape):
    codes, scale = codes_of(127), np.full(shape, 0.25, np.float32)
    weights = ARGS | {"strategy": "tensor", "symmetric": False}
    config = CONFIG | {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    zero = np.full(shape, 3, np.int8)
    _, matrices = read(tensors(codes, scale, weight_zero_point=zero), config)
    want = (codes.astype(np.float32) - 3) * 0.25
    np.testing.assert_array_equal(matrices["a.q_proj"].tensor().load(), want)
    assert matrices["a.q_proj"].scale().shape == (4, 1)


def test_codes_outside_their_bits_are_refused():
    config = copy.deepcopy(CONFIG)
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    _, matrices = read(tensors(codes_of(127), np.ones((4, 1), np.float32)), config)
    with pytest.raises(ValueError, match=r"a\.q_proj has codes from -\d+ to \d+, .* not of 4 bits"):
        matrices["a.q_proj"].tensor().load()


@pytest.mark.parametrize("form", ["int-quantized", "mixed-precision"])
def test_a_group_of_another_format_is_refused_where_it_is_used(form):
    config = copy.deepcopy(CONFIG) | {"format": form}
    config["config_groups"]["group_0"]["format"] = "int-quantized"
    other = {
        "targets": ["re:.*mlp"],
        "weights": ARGS | {"type": "float", "num_bits": 4},
        "format": "float-quantized",
    }
    config["config_groups"]["group_1"] = other
    scale = np.ones((4, 1), np.float32)
    read(tensors(codes_of(127), scale), config)
    with pytest.raises(ValueError, match=r"b\.mlp is of 4 bits of float"):
        read(tensors(codes_of(127), scale, "b.mlp"), config)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c, g: c.update(transform_config={"config_groups": {"u": {}}}), "transform_config"),
        (lambda c, g: c.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        (
            lambda c, g: c.update(sparsity_config={"ignore": []}),
            "sparsity_config.format is missing",
        ),
        (lambda c, g: c.update(kv_cache_scheme=ARGS), "kv_cache_scheme"),
        (lambda c, g: c.update(smoothing={"alpha": 0.5}), "quantization_config.smoothing"),
        (lambda c, g: c.update(config_groups=[]), "config_groups is .*expected a JSON object"),
        (lambda c, g: c.update(config_groups={}), "expected at least one group"),
        (lambda c, g: g.update(output_activations=ARGS), "output_activations"),
        (lambda c, g: g.update(input_activations=ARGS | {"dynamic": False}), "input_activations"),
        (lambda c, g: g.update(input_activations=ARGS | {"dynamic": True}), "input_activations"),
        (lambda c, g: g.update(targets="Linear"), "targets is 'Linear', expected a list"),
        (lambda c, g: g.update(targets=["re:(a+)+b"]), "could take too long"),
        (lambda c, g: g["weights"].update(num_bits="8"), "num_bits is '8', expected an integer"),
        (lambda c, g: g["weights"].update(strategy="block"), "scales by 'block'"),
        (
            lambda c, g: g["weights"].update(group_size=3, strategy="group"),
            "one for each 3 columns",
        ),
        (lambda c, g: g["weights"].update(symmetric=False), "has no weight_zero_point"),
        (lambda c, g: g["weights"].update(dynamic=True), "dynamic is True"),
    ],
)
def test_a_part_that_is_not_computed_is_refused_by_name(change, message):
    config = copy.deepcopy(CONFIG)
    change(config, config["config_groups"]["group_0"])
    with pytest.raises(ValueError, match=message):
        read(tensors(codes_of(127), np.ones((4, 1), np.float32)), config)


@pytest.mark.parametrize(
    "codes, scale, message",
    [
        (np.ones((4, 6), np.float32), np.ones((4, 1), np.float32), "has codes of float32"),
        (codes_of(127), np.ones((4, 1), np.int8), "no weight_scale of floating-point numbers"),
        (codes_of(127), np.ones((3, 1), np.float32), r"has scales of \(3, 1\)"),
        (codes_of(127, (4, 0)), np.ones((4, 1), np.float32), "has other codes"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(codes, scale, message):
    with pytest.raises(ValueError, match=message):
        read(tensors(codes, scale), CONFIG)
