"""from_peft: the LoRA adapter of a PEFT folder as pairs for `jm.adapters.attach` (Hu et al., 2021).

A module of `out` outputs and `in` inputs has lora_A (r, in) and lora_B (out, r): its weight (out,
in) grows by alpha / r · lora_B · lora_A, with √r in place of r for rsLoRA (Kalajdzievski, 2023).
"""

import math
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..architectures.weights.weight_map import WeightMap
from ..core.arguments import takes
from ..formats.safetensors import safetensors
from ..io.json_fields import JsonFields, read_object
from ..models.checkpoint_tensors import bare_name
from ..models.model import Model, family
from ..models.quantized_weights import placed
from ..models.unreadable_sources import pickle_error
from .base_sketch import check_base

CONFIG, WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PART = re.compile(
    r"base_model\.model\.(.+)\.lora_(?:(A|B)\.weight|(magnitude_vector)(?:\.weight)?)"
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # as initial values
# Fields that say where the adapter is from and how it was trained; the tensors say what they are.
_KNOWN = ("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode")
_KNOWN += ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "r")
_KNOWN += ("rank_pattern", "lora_dropout", "peft_version", "fan_in_fan_out", "megatron_core")
_KNOWN += ("megatron_config", "runtime_config", "eva_config", "qalora_group_size")
_ONLY_PAIRS = {  # fields that, set, add to a model what low-rank pairs of linears do not hold
    "modules_to_save": "no modules that were trained whole",
    "trainable_token_indices": "no rows of the embedding that were trained",
    "target_parameters": "no parameters beside the weights of linears",
    "layer_replication": "the layers of the base model, each once",
    "alora_invocation_tokens": "an adapter that every token goes through",
    "lora_bias": "no biases of the pairs",
    "use_qalora": "a lora_A of the module's inputs, not of their groups",
}


@takes()
def from_peft(path: str | os.PathLike, model: Model) -> dict[str, dict[str, Array]]:
    """The adapter of a PEFT folder: {path of a parameter: {"u", "v"}}, in f32; "m" too for DoRA.

    `model` is the base model, dense or encoded, of any family. `jm.adapters.attach(model.params,
    pairs)` are the params with the adapter, which can be trained further; `jm.adapters.merge` puts
    it into the weights. Modules of a stack whose ranks differ, or that have no adapter, get zeros.

    Raises:
        ValueError: a file is missing, malformed or a pickle; the adapter is no LoRA, or has a part
            that a pair does not express (biases, embeddings, trained modules, initial values that
            change the base model, DoRA of some layers only); a module is none of the model's
            linears; `to_peft` wrote the adapter for another base.

    Example:
        >>> import json, pathlib, tempfile, jax, jax.numpy as jnp, numpy as np, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> from safetensors.numpy import save_file
        >>> config = llama.Config(vocab=64, width=32, ffn=64, layers=1, heads=4, kv_heads=2,
        ...                       head_dim=8)
        >>> model = jm.models.Model(config, {}, None, "random")
        >>> module = "base_model.model.model.layers.0.mlp.up_proj"
        >>> parts = {"A": np.ones((2, 32), "f4"), "B": np.ones((64, 2), "f4")}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     said = json.dumps({"peft_type": "LORA", "lora_alpha": 4, "r": 2})
        ...     _ = pathlib.Path(folder, "adapter_config.json").write_text(said)
        ...     tensors = {f"{module}.lora_{part}.weight": w for part, w in parts.items()}
        ...     save_file(tensors, f"{folder}/adapter_model.safetensors")
        ...     pairs = jm.interop.from_peft(folder, model)
        >>> pair = pairs["layers/mlp/up/kernel"]
        >>> pair["u"].shape, pair["v"].shape, float((pair["u"] @ pair["v"])[0, 0, 0])
        ((1, 64, 2), (1, 2, 32), 4.0)
    """
    folder = pathlib.Path(path)
    fields = JsonFields(read_object(folder / CONFIG), f"{folder / CONFIG}: ")
    alphas = _checked(fields)
    check_base(folder, model)
    modules = _modules(folder)
    if fields.boolean("use_dora", False) != any(m is not None for _, _, m in modules.values()):
        fields.refuse("use_dora", "true if the tensors hold magnitudes, and false if not")
    factors = {}
    for module, (a, b, m) in modules.items():
        rank = a.shape[0]
        alpha = next((x for key, x in alphas.items() if f".{module}".endswith(f".{key}")), None)
        alpha = fields.number("lora_alpha", 8.0) if alpha is None else alpha
        scale = alpha / (math.sqrt(rank) if fields.boolean("use_rslora", False) else rank)
        factors[bare_name(f"{module}.weight")] = a, b * np.float32(scale), m
    pairs, used = {}, set()
    for where, weight_map in family(model.config).weights(model.config).items():
        names = [bare_name(name) for name in weight_map.names]
        if factors.keys() & set(names):
            found = [factors.get(name) for name in names]
            pairs[where] = _pair(found, weight_map, where, model.config.family == "gpt2")
            used |= set(names)
    if unknown := sorted(factors.keys() - used):
        raise ValueError(f"{folder} adapts {unknown[0]}, which {model.source} does not have")
    return pairs


def _checked(fields: JsonFields) -> dict[str, float]:
    """{end of the names of modules: alpha}; fields that are not computed are refused."""
    if fields.text("peft_type") != "LORA":
        fields.refuse("peft_type", "'LORA'")
    fields.ignore(*_KNOWN)
    fields.expect("bias", "none")
    for name, expected in _ONLY_PAIRS.items():
        if fields.data.get(name):
            fields.refuse(name, expected, ": an adapter here is low-rank pairs of linears")
    start = fields.data.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        fields.refuse("init_lora_weights", "values that leave the base model as it is")
    fields.ignore("init_lora_weights", "lora_alpha", "use_rslora", "use_dora")
    patterns = fields.object("alpha_pattern")
    for key in patterns.data:
        if not re.fullmatch(r"[\w.]+", key):
            patterns.refuse(key, "an alpha for the end of a module's name, not for a pattern")
    alphas = {key: patterns.number(key) for key in patterns.data}
    fields.refuse_unread()
    return alphas


def _modules(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """The factors A (r, in) and B (out, r) in f32 of each module, and its magnitudes (out,)."""
    if not (folder / WEIGHTS).is_file() and (folder / _PICKLE).is_file():
        raise pickle_error(folder / _PICKLE)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in safetensors(folder / WEIGHTS).items():
        match = _PART.fullmatch(name)
        if match is None or len(tensor.shape) != (1 if match[3] else 2):
            raise ValueError(f"{folder / WEIGHTS}: {name} is no matrix A or B of a linear")
        parts.setdefault(match[1], {})[match[2] or "m"] = tensor.load().astype(np.float32)
    for module, pair in parts.items():
        shapes = {part: w.shape for part, w in pair.items()}
        whole = {"A", "B"} <= set(pair) and shapes["A"][0] == shapes["B"][1]
        if not whole or shapes.get("m", shapes["B"][:1]) != shapes["B"][:1]:
            raise ValueError(f"{folder / WEIGHTS}: {module} has {shapes}, expected A and B")
    if not parts:
        raise ValueError(f"{folder / WEIGHTS} holds no adapter")
    return {module: (pair["A"], pair["B"], pair.get("m")) for module, pair in parts.items()}


def _pair(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray | None] | None],
    weight_map: WeightMap,
    where: str,
    turned: bool,
) -> dict[str, Any]:
    """u (*stack, n, r), v (*stack, r, k) and m (*stack, n) of the parameter `where`.

    `turned` is for tensors (in, out), as GPT-2's.
    """
    k, n = weight_map.shape[-2:]
    rank = max(a.shape[0] for a, _, _ in filter(None, found))
    magnitudes = [factors and factors[2] for factors in found]
    if len({m is None for m in magnitudes}) > 1:
        raise ValueError(f"some layers of {where} have DoRA's magnitudes, expected all or none")
    m = None if magnitudes[0] is None else np.zeros((len(found), n), np.float32)
    u, v = np.zeros((len(found), n, rank), np.float32), np.zeros((len(found), rank, k), np.float32)
    fn = (lambda w: weight_map.fn(w.T)) if turned else weight_map.fn
    for i, factors in enumerate(found):
        if factors is not None:
            a, b, magnitude = factors
            place = placed(fn, b.shape[0], a.shape[1])
            if place is None or place[1].order != (-1, -2) or place[1].shape(()) != (k, n):
                raise ValueError(
                    f"{where} of shape {(k, n)} is no choice of the outputs that "
                    f"lora_B {b.shape} and lora_A {a.shape} adapt"
                )
            u[i, :, : a.shape[0]], v[i, : a.shape[0]] = b[place[0]], a
            if m is not None:
                m[i] = magnitude[place[0]]
    stack = weight_map.shape[:-2]
    pair = {"u": u.reshape(*stack, n, rank), "v": v.reshape(*stack, rank, k)}
    pair |= {} if m is None else {"m": m.reshape(*stack, n)}
    return {name: jnp.asarray(array) for name, array in pair.items()}
