"""What a step can be built of: which families, caches and meshes go together with a model."""

from typing import Any

from ..architectures.configs.decoder_config import Config
from ..models import Model
from .recipe import Recipe

FAMILIES = ("llama", "decoder", "gpt2")  # models that map token ids to logits, with a cache


def cache_bits(config: Config) -> tuple[int, ...]:
    """The bits of a cached number that a model can be served with, the most first.

    Example:
        >>> import jaxmem as jm
        >>> cache_bits(jm.models.load("llama-1b").config)
        (16, 8, 4)
    """
    return (16, 8, 4) if keeps_heads(config) else (16,)


def keeps_heads(config: Any) -> bool:
    """Whether a cache holds keys and values of heads: no latents, and no recurrent states."""
    return not (getattr(config, "latent", None) or getattr(config, "recurrence", None))


def expert_count(config: Any) -> int:
    """The experts of a layer; 1 for a model without a mixture."""
    mixture = getattr(config, "mixture", None)
    return mixture.experts if mixture else 1


def predicts_hidden_tokens(config: Any) -> bool:
    """Whether a model is an encoder with the head of a masked language model."""
    return getattr(config, "head", None) == "masked_lm"


def check_model(model: Model, recipe: Recipe) -> None:
    """Refuses a model that the planner does not know, and a recipe that its family cannot follow.

    Raises:
        ValueError: the model is no decoder, and no encoder to train that predicts hidden tokens in
            packed rows; its latents or recurrent states would be cached in fewer bits or in host
            memory; the mesh axis `expert` does not divide its experts; rows are longer than
            its table of positions.

    Example:
        >>> import jaxmem as jm
        >>> recipe = Recipe("llama-1b", "cpu", "serve", 1, 64, mesh={"expert": 2})
        >>> check_model(jm.models.load("llama-1b"), recipe)
        Traceback (most recent call last):
        ValueError: the mesh has expert=2, but there are no experts in llama-1b, shapes only
    """
    config, source = model.config, model.source
    if predicts_hidden_tokens(config) and recipe.task != "serve":
        if not recipe.packed:
            raise ValueError(f"{source} predicts hidden tokens: give the recipe packed=True")
        return
    if config.family not in FAMILIES:
        known = " or ".join(FAMILIES)
        raise ValueError(f"{source} is of family {config.family!r}, expected a decoder ({known})")
    if recipe.task == "serve" and recipe.cache_bits < 16 and cache_bits(config) == (16,):
        kept = "latents" if config.latent else "recurrent states"
        raise ValueError(
            f"cache_bits is {recipe.cache_bits}, but the {kept} of {source} are cached in floats "
            "only; expected 16"
        )
    if recipe.host_states and not keeps_heads(config):
        raise ValueError(
            f"host is {recipe.host}, but {source} caches latents or recurrent states, which stay "
            "on the device"
        )
    experts, parts = expert_count(config), recipe.axes.get("expert", 1)
    if parts > 1 and experts == 1:
        raise ValueError(f"the mesh has expert={parts}, but there are no experts in {source}")
    if experts % parts:
        raise ValueError(f"{experts} experts of {source} do not divide over expert={parts}")
    learned = getattr(config, "positions", "learned") == "learned"
    if learned and recipe.seq > config.context:
        raise ValueError(
            f"seq is {recipe.seq}, but {source} has learned positions; "
            f"expected at most {config.context}"
        )
