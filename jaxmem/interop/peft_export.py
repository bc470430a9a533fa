"""to_peft: pairs of `jm.adapters` as a PEFT folder, which PEFT, vLLM and `from_peft` open.

Our u is lora_B and our v is lora_A; with lora_alpha = r the scale alpha / r is 1.
"""

import collections
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ..architectures.weights.inverse_maps import by_tensors, shape_of_tensors
from ..architectures.weights.weight_map import WeightMap
from ..core.arguments import takes
from ..formats.safetensors import write_safetensors
from ..io.atomic import replacing
from ..models.model import Model, family
from ..models.quantized_weights import placed
from . import base_sketch, hf_tensors
from .peft import CONFIG, WEIGHTS


@takes()
def to_peft(
    path: str | os.PathLike,
    pairs: dict[str, dict],
    model: Model,
    *,
    alpha: float | None = None,
    root: bool = False,
    base: str | None = None,
) -> None:
    """Writes pairs to a directory: adapter_model.safetensors and adapter_config.json.

    LoRA, rsLoRA and DoRA (pairs with "m"), mixed ranks included: modules whose rank is another one
    are in `rank_pattern` and `alpha_pattern`. Ranks of a layer that are zero in u and v, as those
    that `from_peft` adds to a stack, are left out, and so are layers with no others. Parameters
    that are one linear in a checkpoint, such as the q, k and v of phi3, become one module whose
    rank is the sum of theirs. The directory is complete or absent, and records which base the pairs
    are for, dense or encoded: `from_peft` refuses another one.

    Args:
        path: a directory that does not exist yet, or one that `to_peft` wrote.
        pairs: {path of a parameter: {"u", "v"}}, of `adapters` or `shrink`.
        model: the base model.
        alpha: pairs that were trained with `with_alpha(pairs, alpha, root=root)`, without it here:
            PEFT then computes with this alpha, and can train further. None: the scale is 1.
        root: the scale is alpha / √r: rsLoRA.
        base: the name or folder of the base model for PEFT, as base_model_name_or_path.

    Raises:
        ValueError: `path` is another directory; a pair is a bottleneck, or none of a linear of the
            model; of a linear that has magnitudes, some outputs have none; there is no number
            beside 0.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(vocab=64, width=32, ffn=64, layers=2, heads=4, kv_heads=2,
        ...                       head_dim=8)
        >>> params = llama.module(config).init(jax.random.key(0), jnp.zeros((1, 8), int))["params"]
        >>> model = jm.models.Model(config, params, None, "random")
        >>> pairs = jm.adapters.adapters(jax.random.key(0), params, 4, ".*mlp/up/kernel")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_peft(f"{folder}/out", pairs, model)
        ...     again = jm.interop.from_peft(f"{folder}/out", model)
        >>> bool((again["layers/mlp/up/kernel"]["v"] == pairs["layers/mlp/up/kernel"]["v"]).all())
        True
    """
    target = pathlib.Path(path)
    if target.exists() and not (target / base_sketch.FILE).is_file():
        raise ValueError(f"{target} exists and was not written by to_peft; choose another place")
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}, expected a number above 0")
    pairs = {name: _checked(name, pair) for name, pair in pairs.items()}
    modules, every = {}, []
    for group in by_tensors(family(model.config).weights(model.config)):
        names = hf_tensors.names(model.config, next(iter(group.values())))
        names = [name.removesuffix(".weight") for name in names]
        every += names
        if set(group) & set(pairs):
            modules |= _modules(group, names, pairs, model, alpha, root)
    known = set(family(model.config).weights(model.config))
    if unknown := sorted(set(pairs) - known):
        raise ValueError(f"adapters name {unknown[0]!r}, which {model.source} does not have")
    if not modules:
        raise ValueError("the pairs hold zeros alone, expected an adapter")
    arrays = {
        f"base_model.model.{module}.{name}": array
        for module, (parts, _) in modules.items()
        for name, array in parts.items()
    }
    said = _config(model, modules, every, alpha, root, base)
    leaves = base_sketch.weights_of(model)
    sketch = base_sketch.sketch(leaves, sorted(set(pairs) & set(leaves)))
    with replacing(target, replace_directory=True) as temporary:
        shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        write_safetensors(temporary / WEIGHTS, shapes, arrays.values())
        (temporary / CONFIG).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
        (temporary / base_sketch.FILE).write_text(json.dumps(sketch) + "\n")


def _checked(path: str, pair: dict) -> dict[str, np.ndarray]:
    """The arrays of a pair in f32, the values of triples in u."""
    if not {"u", "v"} <= set(pair) <= {"u", "v", "m", "e"}:
        raise ValueError(
            f"the adapter of {path} has the parts {sorted(pair)}; PEFT's LoRA has those of a pair"
        )
    arrays = {k: np.asarray(jax.device_get(x), np.float32) for k, x in pair.items()}
    if (e := arrays.pop("e", None)) is not None:
        arrays["u"] = arrays["u"] * e[..., None, :]
    return arrays


def _modules(
    group: dict[str, WeightMap],
    names: list[str],
    pairs: dict[str, dict],
    model: Model,
    alpha: float | None,
    root: bool,
) -> dict[str, tuple[dict[str, np.ndarray], float]]:
    """{module: (its tensors, alpha)} of the parameters that are read from the same tensors."""
    turned = model.config.family == "gpt2"  # its tensors are (in, out)
    shape = shape_of_tensors(list(group.values()))
    if len(shape) != 2:
        raise ValueError(f"{next(iter(set(group) & set(pairs)))} is no linear, expected linears")
    n, k = shape[::-1] if turned else shape
    blocks = []
    for path, weight_map in group.items():
        if path in pairs:
            fn = (lambda w, fn=weight_map.fn: fn(w.T)) if turned else weight_map.fn
            place = placed(fn, n, k)
            if place is None or place[1].order != (-1, -2):
                raise ValueError(f"{path} is no linear of {model.source}, expected linears")
            blocks.append((path, place[0], pairs[path]))
    found = {}
    for i, name in enumerate(names):
        layers = [(path, rows, _layer(path, pair, i, len(names))) for path, rows, pair in blocks]
        parts, scale, a, b = {}, None, [], []
        for _, rows, (whole_u, whole_v, _) in layers:
            rank = len(whole_v)
            own = 1.0 if alpha is None else alpha / (math.sqrt(rank) if root else rank)
            used = np.any(whole_u != 0, axis=0) | np.any(whole_v != 0, axis=1)
            u, v = whole_u[:, used], whole_v[used]
            if not len(v):
                continue
            scale = own if scale is None else scale
            same = next((j for j, x in enumerate(a) if np.array_equal(x, v)), None)
            if same is None:
                a.append(v)
                b.append(np.zeros((n, len(v)), np.float32))
                same = len(a) - 1
            b[same][rows] = u if own == scale else u * np.float32(own / scale)
        if not a:
            continue
        parts["lora_A.weight"] = np.concatenate(a)
        parts["lora_B.weight"] = np.concatenate(b, axis=1)
        rank = len(parts["lora_A.weight"])
        magnitudes = [(rows, m) for _, rows, (_, _, m) in layers if m is not None]
        if magnitudes:
            parts["lora_magnitude_vector"] = _magnitude(name, n, magnitudes)
        found[name] = parts, scale * (math.sqrt(rank) if root else rank)
    return found


def _layer(path: str, pair: dict, i: int, count: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """(u (n, r), v (r, k), m (n,) or None) of one of the `count` tensors of a parameter."""
    flat = {name: x.reshape(-1, *x.shape[-1 if name == "m" else -2 :]) for name, x in pair.items()}
    if len(flat["u"]) != count:
        raise ValueError(f"u of {path} has {len(flat['u'])} layers, expected {count}")
    return flat["u"][i], flat["v"][i], flat["m"][i] if "m" in flat else None


def _magnitude(name: str, n: int, magnitudes: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    whole = np.full(n, np.nan, np.float32)
    for rows, m in magnitudes:
        whole[rows] = m
    if np.isnan(whole).any():
        raise ValueError(f"{name} has magnitudes of some outputs only, expected {n} of them")
    return whole


def _config(
    model: Model, modules: dict, every: list[str], alpha: float | None, root: bool, base: str | None
) -> dict[str, Any]:
    """What adapter_config.json says."""
    ranks = {name: len(parts["lora_A.weight"]) for name, (parts, _) in modules.items()}
    rank = collections.Counter(ranks.values()).most_common(1)[0][0]
    most = collections.Counter(a for _, a in modules.values()).most_common(1)[0][0]
    whole = lambda x: int(x) if float(x).is_integer() else x
    dora = {"lora_magnitude_vector" in parts for parts, _ in modules.values()}
    if len(dora) > 1:
        raise ValueError("some pairs have magnitudes and some have none, expected all or none")
    return {
        "peft_type": "LORA",
        "task_type": None if model.config.family == "bert" else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": whole(most),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": root,
        "use_dora": dora.pop(),
        "fan_in_fan_out": model.config.family == "gpt2",
        "init_lora_weights": True,
        "target_modules": sorted(_targets(list(modules), every)),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: whole(a) for name, (_, a) in modules.items() if a != most},
    }


def _targets(names: list[str], every: list[str]) -> Iterator[str]:
    """The ends of the names of modules that have an adapter in all layers, the others whole."""
    kinds = collections.Counter(name.rsplit(".", 1)[-1] for name in every)
    adapted = collections.Counter(name.rsplit(".", 1)[-1] for name in names)
    whole = {kind for kind, count in adapted.items() if count == kinds[kind]}
    yield from whole
    yield from (name for name in names if name.rsplit(".", 1)[-1] not in whole)
