"""WeightMap: names the tensors of a checkpoint that one parameter is read from."""

import dataclasses
from collections.abc import Callable

import numpy as np


def same(w: np.ndarray) -> np.ndarray:
    """Returns the tensor `w` unchanged, in the checkpoint's layout."""
    return w


@dataclasses.dataclass(frozen=True)
class WeightMap:
    """The tensors of a Hugging Face checkpoint that one parameter is read from.

    `names` has one name for each layer if the parameter is `stacked`, else one name. With `parts`
    it has that many names in place of one: these tensors are stacked on a new first axis. Some
    checkpoints put `transformer.` (GPT-2), `bert.` or `language_model.` before a name; a loader
    looks for the plain name first. `fn` changes the layout of each tensor: a PyTorch Linear is
    (out, in), a Flax kernel (in, out). It moves numbers and computes none, so that the map is read
    backwards, too: inverse_maps.py makes the tensors of the parameters. `shape` is the shape of the
    parameter, with the layer axis first if it is stacked. `normed` has the axes of the tensor over
    which it has length 1 in a checkpoint that holds its lengths apart (formats/weight_norm.py).

    Example:
        >>> import numpy as np
        >>> from jaxmem.architectures.weights.weight_map import WeightMap
        >>> r = WeightMap(("h.0.w", "h.1.w"), (2, 4, 3), np.transpose, stacked=True)
        >>> r.fn(np.zeros((3, 4))).shape == r.shape[1:]
        True

    Raises:
        ValueError: the number of `names` does not match `shape`.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    fn: Callable[[np.ndarray], np.ndarray] = same
    stacked: bool = False
    parts: int = 0
    normed: tuple[int, ...] = ()

    def __post_init__(self):
        expected = (self.shape[0] if self.stacked else 1) * (self.parts or 1)
        if len(self.names) != expected:
            raise ValueError(
                f"{len(self.names)} names for shape {self.shape}, expected {expected}: "
                "one a layer when stacked, else one, times the parts"
            )

    @property
    def array_shape(self) -> tuple[int, ...]:
        """The shape of the array that one tensor makes.

        Example:
            >>> WeightMap(("a.0", "a.1"), (2, 8, 4), stacked=True).array_shape
            (8, 4)
        """
        return self.shape[self.stacked + bool(self.parts) :]

    def layer_names(self, layer: int | None) -> tuple[str, ...]:
        """The names of the tensors of a layer; None for a parameter that is not stacked.

        Example:
            >>> norms = WeightMap(("a.0", "a.1", "b.0", "b.1"), (2, 2, 8), stacked=True, parts=2)
            >>> norms.layer_names(1)
            ('b.0', 'b.1')
        """
        first, count = layer or 0, self.parts or 1
        return self.names[first * count : (first + 1) * count]

    def after(self, prefix: str) -> "WeightMap":
        """The map of tensors whose names have a prefix.

        Example:
            >>> WeightMap(("pooler.weight",), (8, 8)).after("bert.").names
            ('bert.pooler.weight',)
        """
        names = tuple(f"{prefix}{name}" for name in self.names)
        return dataclasses.replace(self, names=names)

    def layers(self, start: int, length: int) -> "WeightMap":
        """The map of `length` layers of a stacked parameter, from `start` on.

        Example:
            >>> WeightMap(("a", "b", "c"), (3, 8), stacked=True).layers(1, 2).names
            ('b', 'c')
        """
        count = self.parts or 1
        names = self.names[start * count : (start + length) * count]
        return dataclasses.replace(self, names=names, shape=(length, *self.shape[1:]))


def stacked_linears(
    linears: dict[str, tuple[str, int, int]],
    prefixes: list[str],
    fn: Callable[[np.ndarray], np.ndarray] = same,
) -> dict[str, WeightMap]:
    """The kernels and biases of linears in every layer.

    `linears` is {path: (name in the checkpoint, inputs, outputs)}, `prefixes` the checkpoint's name
    of each layer, and `fn` changes the layout of a kernel to (in, out).

    Example:
        >>> maps = stacked_linears({"mlp/up": ("mlp.c_fc", 32, 48)}, ["h.0.", "h.1."])
        >>> maps["layers/mlp/up/kernel"].names, maps["layers/mlp/up/bias"].shape
        (('h.0.mlp.c_fc.weight', 'h.1.mlp.c_fc.weight'), (2, 48))
    """
    maps = {}
    for path, (name, inputs, outputs) in linears.items():
        tensors = (("kernel", "weight", (inputs, outputs), fn), ("bias", "bias", (outputs,), same))
        for part, tensor, shape, change in tensors:
            names = tuple(f"{prefix}{name}.{tensor}" for prefix in prefixes)
            maps[f"layers/{path}/{part}"] = WeightMap(
                names, (len(prefixes), *shape), change, stacked=True
            )
    return maps


def stacked_layer_norms(
    norms: dict[str, str], prefixes: list[str], width: int
) -> dict[str, WeightMap]:
    """The scales and biases of layer norms in every layer; `norms` is {path: checkpoint's name}.

    Example:
        >>> stacked_layer_norms({"attn_norm": "ln_1"}, ["h.0."], 32)["layers/attn_norm/scale"].names
        ('h.0.ln_1.weight',)
    """
    return {
        f"layers/{path}/{part}": WeightMap(
            tuple(f"{prefix}{name}.{tensor}" for prefix in prefixes),
            (len(prefixes), width),
            stacked=True,
        )
        for path, name in norms.items()
        for part, tensor in (("scale", "weight"), ("bias", "bias"))
    }
