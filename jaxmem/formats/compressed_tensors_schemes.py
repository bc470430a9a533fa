"""The `quantization_config` of a compressed-tensors checkpoint: which scheme each module has.

Where several groups name a module, the most exact target decides: the module's name, the end of its
name, a regular expression, its class.
"""

import dataclasses
import re

from ..io.json_fields import JsonFields

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
FORMATS += ("nvfp4-pack-quantized",)
_MIXED = "mixed-precision"  # every group then has a format of its own
_STRATEGIES = ("tensor", "channel", "group")
_LONGEST_PATTERN = 1_000  # characters
_NESTED_REPEATS = r"[*+}]\)[*+{]"  # such a regular expression can take exponential time


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How the weights and inputs of the modules that match `targets` are rounded."""

    targets: tuple[str, ...]
    format: str | None
    type: str
    bits: int
    symmetric: bool
    strategy: str | None  # None: as the shape of the scales says
    group_size: int | None
    rounds_inputs: bool  # to int8 or e4m3, token by token
    block: tuple[int, ...] | None = None  # rows and columns that share a scale


def schemes(config: dict) -> list[Scheme]:
    """The schemes of a `quantization_config`, in its order.

    Every field is read, known not to change a weight, or refused by name.

    Raises:
        ValueError: another method or format, a part that is not computed here (transforms, rounded
            outputs, sparsity), or a value of the wrong type.
    """
    fields = JsonFields(config, "quantization_config.")
    method, form = config.get("quant_method"), config.get("format")
    fields.ignore("quant_method", "format", "quantization_status", "global_compression_ratio")
    fields.ignore("version", "ignore")  # the tensors in the file say which modules are dense
    if method != "compressed-tensors" or form not in (*FORMATS, _MIXED):
        raise ValueError(
            f"its weights are quantised by {method!r} as {form!r}, expected gptq, awq, fp8, "
            f"bitsandbytes, mxfp4, or compressed-tensors as {', '.join(FORMATS)}; load the "
            "checkpoint in floating point and encode that"
        )
    if "kv_cache_scheme" in fields:
        fields.refuse("kv_cache_scheme", "null", "; keys and values are not rounded here")
    sparsity = fields.object("sparsity_config")
    if sparsity.data and sparsity.text("format") != "dense":
        sparsity.refuse("format", "'dense'", "; sparse weights are not read here")
    sparsity.ignore(*sparsity.data)
    transforms = fields.object("transform_config")
    if transforms.data.get("config_groups"):
        transforms.refuse("config_groups", "none", "; transforms are not computed here")
    transforms.ignore("config_groups")
    groups = fields.objects("config_groups")
    if not groups:
        fields.refuse("config_groups", "at least one group")
    result = [_scheme(group, form) for group in groups.values()]
    fields.refuse_unread()
    return result


def scheme_of(module: str, among: list[Scheme]) -> Scheme:
    """The scheme of the most exact target that matches the name of a module.

    Raises:
        ValueError: no target matches, or one is no regular expression.

    Example:
        >>> linear = Scheme(("Linear",), None, "int", 4, True, None, None, False)
        >>> up = dataclasses.replace(linear, targets=("re:.*up_proj",), bits=8)
        >>> scheme_of("mlp.up_proj", [linear, up]).bits
        8
    """
    ranked = [
        (rank, i)
        for i, scheme in enumerate(among)
        for target in scheme.targets
        if (rank := _rank(target, module)) is not None
    ]
    if not ranked:
        raise ValueError(f"{module} is quantised, and no group of its config says how")
    return among[min(ranked)[1]]


def _scheme(group: JsonFields, form: str) -> Scheme:
    """The scheme of one group."""
    weights, inputs = group.object("weights"), group.object("input_activations")
    if "output_activations" in group:
        group.refuse("output_activations", "null", "; outputs are not rounded here")
    own_format = group.text("format", None if form == _MIXED else form)
    for part in (weights, inputs):
        part.ignore("observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype")
    weights.expect("dynamic", False)
    size = weights.integer("group_size", None, least=-1)
    kind = weights.text("type", "int")
    inputs_are_rounded_alike = (
        inputs.data.get("dynamic") is True
        and inputs.data.get("num_bits") == 8
        and inputs.data.get("type", "int") == kind
        and inputs.data.get("strategy", "token") == "token"
    )
    if inputs.data and not inputs_are_rounded_alike:
        group.refuse("input_activations", f"dynamic {kind} of 8 bits for each token")
    inputs.ignore("num_bits", "type", "symmetric", "strategy", "dynamic", "group_size")
    block = weights.data.get("block_structure")
    is_block = weights.data.get("strategy") == "block" and kind == "float"
    weights.ignore("block_structure")
    inputs.ignore("block_structure")
    return Scheme(
        targets=tuple(group.texts("targets")),
        format=own_format,
        type=kind,
        bits=weights.integer("num_bits", 8),
        symmetric=weights.boolean("symmetric", True),
        strategy=weights.text("strategy", None),
        group_size=size if size and size > 0 else None,
        rounds_inputs=bool(inputs.data),
        block=weights.integers("block_structure") if is_block and block else None,
    )


def check_computed(scheme: Scheme, module: str) -> None:
    """Refuses a scheme of weights that is not read here.

    Raises:
        ValueError: the weights are no integers of 4 or 8 bits and no floats of 8 or NVFP4, or have
            scales of another kind.
    """
    if is_nvfp4(scheme):
        return
    if (scheme.type, scheme.bits) not in (("int", 4), ("int", 8), ("float", 8)):
        expected = "expected int 4 or 8, float 8, or float 4 as nvfp4-pack-quantized"
        raise ValueError(f"{module} is of {scheme.bits} bits of {scheme.type}, {expected}")
    if scheme.strategy not in (None, *_STRATEGIES) and scheme.block is None:
        raise ValueError(
            f"{module} has scales by {scheme.strategy!r}, expected one of {', '.join(_STRATEGIES)}"
        )
    if scheme.format not in (None, *FORMATS):
        raise ValueError(
            f"{module} is stored as {scheme.format!r}, expected one of {', '.join(FORMATS)}"
        )


def is_nvfp4(scheme: Scheme) -> bool:
    """Whether weights are e2m1 in groups of 16 with scales of e4m3, and inputs as they are."""
    has_groups = scheme.strategy == "tensor_group" and scheme.group_size == 16
    is_float = (scheme.type, scheme.bits, scheme.rounds_inputs) == ("float", 4, False)
    return is_float and has_groups and scheme.format == "nvfp4-pack-quantized"


def _rank(target: str, module: str) -> int | None:
    """How exactly a target names a module, 0 the most exactly; None if it does not."""
    if target == module:
        return 0
    if module.endswith(f".{target}"):
        return 1
    if target.startswith("re:"):
        return 2 if _matches(target[3:], module) else None
    module_class = "Embedding" if "embed" in module.rpartition(".")[2] else "Linear"
    return 3 if target == module_class else None


def _matches(pattern: str, module: str) -> bool:
    """Whether a regular expression matches the beginning of a module's name."""
    if len(pattern) > _LONGEST_PATTERN or re.search(_NESTED_REPEATS, pattern):
        raise ValueError(f"{pattern[:80]!r} is a regular expression that could take too long")
    try:
        return re.match(pattern, module) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
