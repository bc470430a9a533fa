"""Recipe: everything that decides what a step takes, as plain data with a JSON form."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ..codecs import Int
from ..compiler.devices import target
from ..compression.plan import Plan
from ..core.arguments import NAMES, check_fields
from ..core.codec import OPTIONAL_CODEC
from ..io.json_fields import parse_object
from ..train.remat_policy import Remat
from .search_space import OPTIMIZERS, STATES, WEIGHTS

TASKS = ("train", "lora", "serve")
ADAPTERS = ("lora", "rslora", "dora", "lora-fa", "adalora")
CACHE = "cache/"  # what paths of a cache begin with, beside those of weights
_TILED = ("none", "full", "nested")  # remat of recipes with tiles
_USUAL = {"adapter": "lora", "optimizer": "adamw", "release": False, "weights": "bfloat16"}
MESH_AXES = ("data", "fsdp", "expert", "tensor")  # the axes of `jm.mesh` that a recipe can name


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what a step takes; JSON that `build` turns into the step.

    Args:
        model: a name that `models.load` takes.
        device: a name that `memory` takes.
        task: "train" (all weights), "lora" (pairs beside frozen weights) or "serve".
        batch: rows of a step, on all devices together.
        seq: tokens of a row; to serve, tokens of a row that the cache holds.
        encoding: the codec of kernels and embeddings; None for bfloat16. The task "train" takes
            None, or with `release` also `Int(8)`.
        cache_bits: bits of a key or value in the cache: 16 (bfloat16), 8, 4 or 2.
        state: the form of the optimizer's state, one of `STATES`.
        remat: the tensors that are kept for the backward pass.
        offload: whether the optimizer's state is in host memory, and is updated layer by layer.
        micro: micro-batches, of which one is in memory at a time.
        chunk: positions whose logits exist at a time.
        packed: rows hold several texts and masks, as `jm.data.Batches` gives them; otherwise one.
        rank: the rank of LoRA pairs.
        adapter: "lora", "rslora" (the pairs times √rank), "dora" (with magnitudes), "lora-fa" (v
            stays) or "adalora" (triples fall to as many numbers as `rank` has; on one device).
        prompt: tokens of a row's prompt that are read at a time, to serve.
        shared: whether weights are divided over `fsdp`, as `jm.layouts.fsdp_tensor` says. If not,
            they are laid out as `jm.layouts.tensor` says, and only the optimizer's state and the
            batch are divided over `fsdp`.
        mesh: the sizes of axes of `jm.mesh`: `{"fsdp": 8}`, `{"fsdp": 4, "tensor": 2}`. Rows of
            the batch are divided over `data` and `fsdp`, the experts of a mixture over `expert`.
            By default all chips of the device are one axis: `fsdp`, or to serve `tensor` (`data`
            if not `shared`).
        pages: to serve, the pages of 64 tokens of a pool that holds the keys and values of all
            rows, of `seq` tokens at most each; None for a cache with `seq` tokens for every row.
        optimizer: to train, "adamw" or "scale", which is `jm.optimizers.scale_sgd` and has next to
            no state.
        release: to train, whether each layer is updated as soon as its gradient is known, as
            `jm.train.released` does. The inputs of layers are kept for all micro-batches, as
            `remat.held` says; `remat` is "full".
        host: to serve on one device, the paths of weights whose stacks of layers are in host
            memory; one layer at a time is on the device (see `jm.from_host`). Paths that begin
            with "cache/" are those of the cache or pool: keys and values come to the device and go
            back layer by layer.
        tile: to train, the most tokens of a row that a layer computes at a time, as
            `jm.train.tiled` does it, so that hidden numbers of an MLP exist for these only; None
            for all tokens. `remat` is "none", "full" or "nested".
        weights: to train on one device, "bfloat16", or "split" for 3 bytes a weight, which hold
            about 24 bits (see `jm.optimizers.split_weights`); models read the first two.

    Raises:
        ValueError: a value is not one of those above, or values do not go together.

    Example:
        >>> import jaxmem as jm
        >>> recipe = Recipe("llama-8b", "tpu v5e:1x1", "serve", 16, 4096, encoding=jm.Int(4))
        >>> Recipe.from_json(recipe.to_json()) == recipe
        True
        >>> Recipe("llama-8b", "tpu v5e:2x4", "train", 8, 2048).axes
        {'fsdp': 8}
    """

    model: str
    device: str
    task: str
    batch: int
    seq: int
    encoding: Any = None
    cache_bits: int = 16
    state: str = "float32"
    remat: Remat = Remat("full")  # noqa: RUF009  it is frozen
    offload: bool = False
    micro: int = 1
    chunk: int = 512
    rank: int = 16
    prompt: int = 64
    shared: bool = True
    mesh: Mapping[str, int] | None = dataclasses.field(default=None, hash=False)
    packed: bool = False
    adapter: str = "lora"
    pages: int | None = None
    optimizer: str = "adamw"
    release: bool = False
    host: Sequence[str] = ()
    tile: int | None = None
    weights: str = "bfloat16"

    def __post_init__(self):
        check_fields(self, encoding=OPTIONAL_CODEC, host=NAMES)
        object.__setattr__(self, "host", tuple(self.host))
        self._check_names()
        target(self.device)  # refuses an unknown name
        if self.cache_bits not in (16, 8, 4, 2):
            raise ValueError(f"cache_bits is {self.cache_bits}, expected 16, 8, 4 or 2")
        for name in ("batch", "seq", "micro", "chunk", "rank", "prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.batch % self.micro:
            raise ValueError(f"{self.micro} micro-batches of a batch of {self.batch}")
        if self.task != "lora" and self.adapter != "lora":
            raise ValueError(f"adapter is {self.adapter!r} for {self.task!r}, expected task 'lora'")
        if self.task == "serve":
            self._check_serve()
        if self.release:
            self._check_release()
        elif self.task == "train" and self.encoding is not None:
            raise ValueError(
                f"training moves every weight, and {self.encoding} cannot move: expected release "
                "with Int(8), or task 'lora'"
            )
        if self.pages is not None:
            self._check_pages()
        self._check_trained()
        if self.mesh is not None:
            object.__setattr__(self, "mesh", _checked_mesh(self.mesh))
        if self.host and (self.task != "serve" or not self._is_one_device):
            raise ValueError(
                f"host is {self.host} for task {self.task!r} on {self.device}, expected to serve "
                "on one device"
            )

    def _check_names(self):
        """Refuses names that are not known."""
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; expected one of {', '.join(TASKS)}")
        choices = {"state": STATES, "adapter": ADAPTERS}
        choices |= {"optimizer": OPTIMIZERS, "weights": WEIGHTS}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")

    def _check_serve(self):
        """Refuses what is only said of a step that trains."""
        if self.packed:
            raise ValueError("packed is True, but rows to serve are one text each")
        if self.optimizer != "adamw":
            raise ValueError(f"optimizer is {self.optimizer!r} for 'serve', expected to train")

    def _check_release(self):
        """Refuses what a step that releases gradients does not do."""
        wrong = {
            f"task is {self.task!r}": self.task != "train",
            f"encoding is {self.encoding}": self.encoding not in (None, Int(8)),
            f"remat is {self.remat.kind!r}": self.remat.kind != "full",
            "offload is True": self.offload,
            f"the mesh is {self.axes}": bool(self.axes),
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(
                    f"release is True and {what}: expected task 'train', encoding None or Int(8), "
                    "remat 'full', no offload and one device"
                )

    def _check_trained(self):
        """Refuses tiles and forms of weights where nothing computes them."""
        is_tiled = self.task == "train" and self.remat.kind in _TILED
        if self.tile is not None and (self.tile < 1 or not is_tiled):
            raise ValueError(
                f"tile is {self.tile} for task {self.task!r} with remat {self.remat.kind!r}, "
                f"expected at least 1 token, task 'train' and remat {', '.join(_TILED)}"
            )
        is_whole = self.task == "train" and self.encoding is None and not self.offload
        if self.weights != "bfloat16" and not (is_whole and self._is_one_device):
            raise ValueError(
                f"weights is {self.weights!r} for task {self.task!r}, expected task 'train' on one "
                "device, with encoding None and no offload"
            )

    def _check_pages(self):
        """Refuses a pool of pages where none is computed."""
        if self.task != "serve" or self.pages < 1:
            raise ValueError(
                f"pages is {self.pages} for task {self.task!r}, expected at least 1, to serve"
            )
        if not self._is_one_device:
            raise ValueError(
                f"pages is {self.pages}, but a pool is on one device; got {self.device}"
            )

    @property
    def _is_one_device(self) -> bool:
        device = target(self.device)
        return not (device and device.count > 1) and max((self.mesh or {"": 1}).values()) == 1

    @property
    def axes(self) -> dict[str, int]:
        """The axes of the mesh that have more than one device."""
        if self.mesh is not None:
            return dict(self.mesh)
        device = target(self.device)
        if not device or device.count == 1:
            return {}
        to_serve = "tensor" if self.shared else "data"
        return {to_serve if self.task == "serve" else "fsdp": device.count}

    @property
    def host_weights(self) -> tuple[str, ...]:
        """The paths of `host` that are of weights."""
        return tuple(path for path in self.host if not path.startswith(CACHE))

    @property
    def host_states(self) -> tuple[str, ...]:
        """The paths of `host` that are of the cache, in the cache."""
        return tuple(path.removeprefix(CACHE) for path in self.host if path.startswith(CACHE))

    @property
    def summary(self) -> str:
        """The choices of the recipe in one line.

        Example:
            >>> import jaxmem as jm
            >>> Recipe("llama-8b", "cpu", "serve", 1, 64, encoding=jm.Int(8)).summary
            'int8, cache of 16 bits, prompts by 64'
            >>> Recipe("llama-8b", "tpu v5e:2x4", "train", 8, 2048).summary
            'float32 state, remat full, fsdp 8'
        """
        weights = self.encoding or "bfloat16"
        if isinstance(weights, Int):
            weights = f"int{weights.bits}" + (f" g{weights.group}" if weights.group else "")
        if self.task == "serve":
            cache = f"cache of {self.cache_bits} bits"
            cache += f" in {self.pages:,} pages" if self.pages else ""
            parts = [f"{weights}", cache, f"prompts by {self.prompt}"]
            parts += [f"on the host: {', '.join(self.host)}"] if self.host else []
        else:
            micro = f"{self.micro} micro-batches" if self.micro > 1 else ""
            is_encoded = self.task == "lora" or self.encoding is not None
            parts = [f"{weights}" if is_encoded else "", f"{self.state} state"]
            parts[1:1] = [f"{self.adapter} {self.rank}"] if self.adapter != "lora" else []
            parts[1:1] = [f"{self.weights} weights"] if self.weights != "bfloat16" else []
            parts[1:1] = [self.optimizer] if self.optimizer != "adamw" else []
            held = f" in {self.remat.held}" if self.remat.held else ""
            parts += ["released" if self.release else "", f"remat {self.remat.kind}{held}", micro]
            parts += [f"tiles of {self.tile} tokens" if self.tile else ""]
            parts += ["state on the host" if self.offload else ""]
        parts.append("packed" if self.packed else "")
        parts.append(" x ".join(f"{axis} {size}" for axis, size in self.axes.items()))
        parts.append("" if self.shared else "weights not divided over fsdp")
        return ", ".join(filter(None, parts))

    def to_json(self) -> str:
        """The recipe as JSON text."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["encoding"] = self.encoding and json.loads(Plan({"": self.encoding}).to_json())[""]
        for name in ("mesh", "packed", "pages", "host", "tile"):
            if not fields[name]:
                del fields[name]
        for name, usual in _USUAL.items():
            if fields[name] == usual:
                del fields[name]
        return json.dumps(fields | {"remat": dataclasses.asdict(self.remat)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The recipe that `to_json` wrote, of this version or of 0.1.0, which had no `mesh`.

        Raises:
            ValueError: `text` is no JSON of a recipe.
        """
        try:
            data = parse_object(text, "it")
            if data["encoding"]:
                codec = Plan.from_json(json.dumps({"": data["encoding"]}))[""]
                data["encoding"] = codec
            return cls(**data | {"remat": Remat(**data["remat"])})
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"not the JSON text of a Recipe: {e}") from e


def _checked_mesh(mesh: Mapping[str, int]) -> dict[str, int]:
    """The axes of a mesh that have more than one device, in the order of `MESH_AXES`."""
    for name, size in mesh.items():
        if name not in MESH_AXES:
            raise ValueError(f"the mesh has axis {name!r}, expected some of {', '.join(MESH_AXES)}")
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"the mesh has {name}={size}, expected at least 1")
    return {name: mesh[name] for name in MESH_AXES if mesh.get(name, 1) > 1}
