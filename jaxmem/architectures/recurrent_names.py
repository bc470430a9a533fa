"""The names of the tensors of a Hugging Face checkpoint, for decoders with recurrent layers."""

_MAMBA = {
    "layer": "backbone.layers.{}.",
    "embed": "backbone.embeddings",
    "final_norm": "backbone.norm_f",
    "head": "lm_head",
    "attn_norm": "norm",
}


def _scan(stem: str) -> dict[str, str]:
    """What every selective scan has."""
    parts = {"in": "in_proj", "gate": "in_proj", "out": "out_proj", "conv": "conv1d"}
    parts |= {"log_decay": "A_log", "skip": "D"}
    return {f"mixer/{part}": f"{stem}.{name}" for part, name in parts.items()}


def _mamba(stem: str) -> dict[str, str]:
    """A selective scan whose steps are made of the convolved input."""
    norms = {"step_norm": "dt_layernorm", "b_norm": "b_layernorm", "c_norm": "c_layernorm"}
    parts = {"select": "x_proj", "step": "dt_proj"}
    parts |= {f"{part}/scale": f"{name}.weight" for part, name in norms.items()}
    return _scan(stem) | {f"mixer/{part}": f"{stem}.{name}" for part, name in parts.items()}


def _mamba2(stem: str) -> dict[str, str]:
    """A selective scan of heads."""
    parts = dict.fromkeys(("b", "c", "step"), "in_proj")
    parts |= {"step_bias": "dt_bias", "norm/scale": "norm.weight"}
    return _scan(stem) | {f"mixer/{part}": f"{stem}.{name}" for part, name in parts.items()}


RECURRENT_NAMES = {  # as `NAMES` of tensor_names.py
    "mamba": _MAMBA | _mamba("mixer"),
    "mamba2": _MAMBA | _mamba2("mixer"),
}
