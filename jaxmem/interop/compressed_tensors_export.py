"""to_compressed_tensors: a checkpoint of int4 and int8 weights for vLLM and transformers.

The directory is that of to_hf, with a `quantization_config` in config.json and codes for weights.
formats/compressed_tensors.py describes the format and reads it.
"""

import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..core.arguments import OPTIONAL_TREE, takes
from ..io.atomic import replacing
from ..models.model import Model
from . import compressed_tensors_layout, hf_json_files, hf_tensors, layer_codes
from .compressed_tensors_layout import Run
from .layer_codes import Written


@takes(params=OPTIONAL_TREE)
def to_compressed_tensors(
    path: str | os.PathLike, model: Model, params: Any = None, *, packed: bool = True
) -> Written:
    """Writes `model` with `params` (default: its own) to a new directory `path`.

    Linear weights of `Int`, with one scale per row or groups that divide the row, keep their codes:
    int4 up to 4 bits, else int8. Weights that a family holds in one tensor, such as q, k and v,
    keep them if they have one form; each expert has tensors of its own. The rounding of inputs to
    int8, token by token, by `Dynamic(Int(bits))` is written too; for other roundings only the codes
    are written. Other encoded weights, routers and embedding tables are decoded, and the result
    lists them. Layers that are encoded differently are named one by one; vLLM fuses q, k and v, and
    gate and up, and requires one form for each of these. `packed` writes `pack-quantized`, which
    vLLM reads for weight-only quantization; `packed=False` writes int8 codes, `int-quantized`,
    which vLLM reads for weights and inputs of 8 bits. The directory is complete or absent.

    Raises:
        ValueError: `path` exists; no config.json describes the model; `params` are not those of the
            model, or are shapes; they hold codes of a module that is no linear layer in
            transformers: the Conv1D of a GPT-2, all experts in one tensor, or what transformers
            loads into other tensors (Nomic BERT, DINOv2, Llama 4).

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, numpy as np, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.zeros((1, 8), jnp.int32)
        >>> shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
        >>> draw = lambda x: np.random.default_rng(0).normal(size=x.shape).astype(x.dtype)
        >>> params = jax.tree.map(draw, shapes)
        >>> model = jm.models.Model(config, params, None, "random")
        >>> encoded = jm.encode(params, {"layers/mlp/up/kernel": jm.Int(4, group=32)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "int4"
        ...     written = jm.interop.to_compressed_tensors(path, model, encoded)
        ...     files = sorted(file.name for file in path.iterdir())
        >>> written.types["layers/mlp/up/kernel"], written.types["layers/mlp/gate/kernel"]
        ('int4', 'float32')
        >>> files
        ['config.json', 'model.safetensors']
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ValueError(f"{path} exists; choose another place")
    layout = compressed_tensors_layout.layout(model, params, packed=packed)
    with replacing(path, directory=True) as folder:
        hf_json_files.write(folder, layout.json_files, model)
        arrays = itertools.chain.from_iterable(map(_arrays, layout.runs))
        hf_tensors.write(folder, layout.tensors, arrays)
    size = sum(file.stat().st_size for file in path.iterdir())
    coded = {name: run.coded for run in layout.runs for name in run.leaves}
    rounds_in_file = lambda name: coded[name] and coded[name].form.rounds_inputs
    rounded = [name for name, x in layout.leaves.items() if layer_codes.rounds_inputs(x)]
    unrounded = tuple(name for name in rounded if not rounds_in_file(name))
    return Written(str(path), size, layout.types, layout.decoded, unrounded)


def _arrays(run: Run) -> Iterator[np.ndarray]:
    """The arrays of a run, in the order of `_tensors`."""
    if run.coded is None:
        return hf_tensors.dense_arrays(run.weight_maps, run.leaves, run.types)
    return run.coded.arrays()
