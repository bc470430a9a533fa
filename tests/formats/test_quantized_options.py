"""What a quantized checkpoint says and is not computed is refused by name."""

import numpy as np
import pytest

from jaxmem.core.lazy import Lazy
from jaxmem.formats.quantized_checkpoint import method, read


def held(**tensors):
    lazy = lambda a: Lazy(a.shape, a.dtype, lambda _: a)
    return {f"a.{name.replace('__', '.')}": lazy(a) for name, a in tensors.items()}


ZEROS = lambda *shape: np.zeros(shape, np.int32)
GPTQ = dict(qweight=ZEROS(4, 8), qzeros=ZEROS(1, 1), scales=np.ones((1, 8), np.float16))
AWQ = GPTQ | dict(qweight=ZEROS(32, 1))
MLX = dict(weight=np.zeros((4, 8), np.uint32), scales=np.ones((4, 1), np.float32),
           biases=np.ones((4, 1), np.float32))  # fmt: skip
INT8 = dict(weight=np.zeros((4, 8), np.int8), SCB=np.ones(4, np.float32))


@pytest.mark.parametrize(
    "name, config, tensors, message",
    [
        ("gptq", {"bits": 5}, GPTQ, "bits is 5, expected one of 2, 3, 4, 8"),
        ("gptq", {"bits": 4, "checkpoint_format": "marlin"}, GPTQ, "checkpoint_format is 'marlin'"),
        ("gptq", {"bits": 4, "dynamic": {"-:.*up": {}}}, GPTQ, "dynamic is"),
        ("gptq", {"bits": 4, "rotation": "hadamard"}, GPTQ, "rotation is 'hadamard'"),
        ("gptq", {"bits": 4, "group_size": 16}, GPTQ, r"a.scales has shape \(1, 8\)"),
        ("gptq", {"bits": 4}, GPTQ | {"g_idx": ZEROS(32) + 1}, "groups of other sizes"),
        ("gptq", {"bits": 4}, GPTQ | {"qzeros": ZEROS(1, 2)}, "a.qzeros has shape"),
        ("awq", {"bits": 4, "version": "gemv"}, AWQ, "version is 'gemv'"),
        ("awq", {"w_bit": 8}, AWQ, "w_bit is 8"),
        ("fp8", {"fmt": "e5m2"}, {}, "fmt is 'e5m2'"),
        ("mlx", {"mode": "mxfp4"}, MLX, "mode is 'mxfp4'"),
        ("mlx", {"bits": 8, "group_size": 64}, MLX, "a.weight has shape"),
        ("mlx", {}, MLX | {"scales": np.ones((2, 4, 1), np.float32)}, "in a switch_mlp"),
        ("bitsandbytes", {}, INT8 | {"weight_format": np.array(1, np.uint8)}, "weight_format is 1"),
        ("bitsandbytes", {}, INT8 | {"SCB": np.ones(3, np.float32)}, "a.SCB has shape"),
        ("mxfp4", {}, {"x_blocks": np.zeros((1, 2, 3), np.uint8)}, "experts, rows, blocks, 16"),
    ],
)
def test_an_option_that_is_not_computed_is_refused(name, config, tensors, message):
    with pytest.raises(ValueError, match=message):
        read(held(**tensors), name, config, False)


def test_a_config_that_is_no_object_has_no_method_that_is_read():
    name, config = method({"quantization_config": ["gptq"]})
    with pytest.raises(ValueError, match="expected a JSON object"):
        read({}, name, config, False)


def test_the_linears_of_gpt2_are_turned():
    _, coded = read(held(**INT8), "bitsandbytes", {}, True)
    assert coded["a.weight"].turned and coded["a.weight"].tensor().shape == (8, 4)
