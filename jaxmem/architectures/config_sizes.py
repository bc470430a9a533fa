"""Checks of the sizes in a configuration, and their reading from a config.json."""

from typing import Any


def check_positive(config: Any, *names: str) -> None:
    """Refuses sizes below 1.

    Raises:
        ValueError: one of the fields `names` is less than 1.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, expected at least 1")


def check_family(config: Any, expected: str) -> None:
    """Refuses a configuration of another family.

    Raises:
        ValueError: `config.family` is not `expected`.
    """
    if config.family != expected:
        raise ValueError(f"family is {config.family!r}, expected {expected!r}")


def set_head_dim(config: Any) -> None:
    """Sets `head_dim` of a frozen configuration to width / heads where it is 0.

    Raises:
        ValueError: the width does not divide into the heads.
    """
    if not config.head_dim and config.width % config.heads:
        raise ValueError(f"a width of {config.width} does not divide into {config.heads} heads")
    object.__setattr__(config, "head_dim", config.head_dim or config.width // config.heads)


def check_model_type(hf: dict, expected: str) -> None:
    """Refuses the config.json `hf` of another kind of model.

    Raises:
        ValueError: `hf["model_type"]` is not `expected`.
    """
    if hf.get("model_type") != expected:
        raise ValueError(f"model_type is {hf.get('model_type')!r}, expected {expected!r}")


def read_sizes(hf: dict, names: dict[str, str]) -> dict[str, Any]:
    """The sizes {our field: value} in a config.json `hf`; `names` is {our field: its key}.

    Raises:
        ValueError: `hf` lacks a key.

    Example:
        >>> read_sizes({"n_embd": 32}, {"width": "n_embd"})
        {'width': 32}
    """
    missing = [key for key in names.values() if key not in hf]
    if missing:
        raise ValueError(f"config.json has no {missing[0]!r}")
    return {field: hf[key] for field, key in names.items()}
