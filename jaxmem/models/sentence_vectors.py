"""Vectors of texts: an encoder with the pooling, and the dense layer, that its folder names."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from ..architectures.weights.encoder_weights import VECTOR
from ..core.lazy import Lazy
from ..core.warning import warn
from ..formats.safetensors import safetensors
from ..io.json_fields import JsonFields
from .model import Model
from .sentence_pooling import CONFIG, DENSE, MODULES, Pooling, module_folders, pooling_of

WEIGHTS = "model.safetensors"
DENSE_FOLDER, _LINEAR = VECTOR.split("/")  # where to_hf writes it; its module's name in the file
# {the last part of a class's name: Config.vector_activation}
_ACTIVATIONS = {"Identity": "", "Tanh": "tanh", "ReLU": "relu", "Sigmoid": "sigmoid"}
_MOST = 2**20  # numbers of a vector


def vectors_of_texts(model: Model, pooling: Pooling | None = None) -> Callable:
    """`run(params, ids, mask)`: a vector for each text, of an encoder's hidden states.

    `pooling` is by default what the model's folder says, and else their mean, of length 1. A model
    that gives vectors itself is run as it is. The head of another encoder is not used.

    Raises:
        ValueError: the folder makes vectors in a way that is not computed here, or by a dense layer
            that the model does not hold.
    """
    head = getattr(model.config, "head", "")
    if pooling is None:
        if head == "vector":
            return model.apply
        if DENSE in module_folders(model.hf_files):
            raise ValueError(
                f"{model.source}: {MODULES} names {DENSE}, whose weights this model does not hold; "
                "load its folder again"
            )
        pooling = pooling_of(model.hf_files, model.source)
    if head:
        model = dataclasses.replace(model, config=model.config.without_head())
    return lambda params, ids, mask: pooling(model.apply(params, ids, mask), mask)


def with_dense_layer(
    config: Any, tensors: dict[str, Lazy], files: dict[str, Any], folder: pathlib.Path
) -> tuple[Any, dict[str, Lazy]]:
    """The configuration and tensors of an encoder with the dense layer that its folder names.

    Its output are then vectors. A layer that is not read stays out, and a warning says why.
    """
    if DENSE not in module_folders(files) or not hasattr(config, "without_head"):
        return config, tensors
    try:
        return vector_config(config, files, folder), tensors | _dense_tensors(folder, files)
    except ValueError as error:
        warn(f"{error}; the output of the model is hidden states, and no vectors of texts")
        return config, tensors


def vector_config(config: Any, files: dict[str, Any], source: Any) -> Any:
    """The configuration of an encoder whose output are the vectors that `files` describe.

    Raises:
        ValueError: a file is missing, or says what is not computed here; the message names it.
    """
    pooling = pooling_of(files, source)
    fields, widths, bias = _dense_options(files, source)
    if widths[0] != config.width:
        fields.refuse("in_features", f"{config.width}, the width of the encoder")
    name = fields.text("activation_function", "torch.nn.modules.activation.Tanh")
    activation = name.rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        fields.refuse("activation_function", f"one that ends in {', '.join(_ACTIVATIONS)}")
    fields.refuse_unread(r"module_input_name|module_output_name")
    return dataclasses.replace(
        config.without_head(),
        head="vector",
        pool=pooling.mode,
        vector_width=widths[1],
        vector_bias=bias,
        vector_activation=_ACTIVATIONS[activation],
        unit_vector=pooling.normalized,
    )


def _dense_options(files: dict[str, Any], source: Any) -> tuple[JsonFields, list[int], bool]:
    """The options of a dense layer, its inputs and outputs, and whether it has a bias."""
    name = f"{module_folders(files)[DENSE]}/{CONFIG}"
    if name not in files:
        raise ValueError(f"{source}: {name} is missing")
    fields = JsonFields(files[name], f"{source}: {name}: ")
    widths = [fields.integer(f"{x}_features", most=_MOST) for x in ("in", "out")]
    return fields, widths, fields.boolean("bias", True)


def _dense_tensors(folder: pathlib.Path, files: dict[str, Any]) -> dict[str, Lazy]:
    """The tensors of a dense layer, by the names of its weight map."""
    _, widths, bias = _dense_options(files, folder)
    path = folder / module_folders(files)[DENSE] / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path} is missing; a pickle, such as pytorch_model.bin, is not read")
    tensors = safetensors(path)
    shapes = {f"{_LINEAR}.weight": (widths[1], widths[0])}
    shapes |= {f"{_LINEAR}.bias": (widths[1],)} if bias else {}
    if (held := {name: tensor.shape for name, tensor in tensors.items()}) != shapes:
        raise ValueError(f"{path} holds tensors of {held}, expected {shapes}")
    return {f"{DENSE_FOLDER}/{name}": tensor for name, tensor in tensors.items()}
