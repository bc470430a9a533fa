"""breakdown: peak = arguments by part + outputs + temporaries by purpose."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import jax

from ..core.arguments import TREE, Kind, takes
from ..core.byte_counts import device_bytes
from ..core.pictures import Picture, new_figure
from . import hlo
from .live_buffers import Buffer, at_peak, lines
from .memory_analysis import Memory

LARGEST = 12  # temporaries that a breakdown lists by name


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Bytes on one device by part, which add up to the peak, and the largest temporaries.

    Parts that are arguments are exact. For temporaries the compiler reports only the sum, so the
    schedule is read to find which are live when the program uses most memory. `temp, other` is the
    rest: padding, fragmentation, and what this reading of the schedule misses.
    """

    device: str
    parts: dict[str, int]
    largest: tuple[dict, ...]  # {"bytes", "type", "part", "path", "line"}

    def __str__(self) -> str:
        total = sum(self.parts.values())
        row = lambda name, n: f"  {name:<24}{n:>18,}{n / 2**20:>14,.1f} MiB{n / total:>7.1%}"
        out = [f"{self.device}: {total:,} bytes", *(row(*part) for part in self.parts.items())]
        out += ["largest temporaries"] if self.largest else []
        for b in self.largest:
            out.append(
                f"  {b['bytes'] / 2**20:>10,.1f} MiB  {b['type']:<28}{b['line'] or b['path']}"
            )
        return "\n".join(out)

    def to_json(self) -> str:
        """The parts and the largest buffers, as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)


_PARTS = Kind(
    "a mapping from parts to trees of arrays",
    lambda x: isinstance(x, Mapping) and all(map(TREE.accepts, x.values())),
)


@takes(arguments=_PARTS)
def breakdown(m: Memory, arguments: Mapping[str, Any]) -> Breakdown:
    """A compiled program's bytes by purpose.

    `arguments` is {part: a tree of the program's arguments, abstract or concrete}, such as
    `Built.parts` of `build`. The parts called "weights" and "adapters" tell which temporaries are
    gradients: arrays of those shapes in the backward pass. An array whose first axis is as long as
    the stack of layers is kept for the backward pass; any other array is "at work". The loss and
    the optimizer are found by the names that `build` gives them in the program.

    Raises:
        ValueError: the program was estimated, not compiled.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> w, x = jnp.ones((64, 64)), jnp.ones((256, 64))
        >>> fn = lambda w, x: jnp.sin(jnp.tanh(x @ w) @ w).sum()
        >>> breakdown(jm.memory(jax.grad(fn), w, x), {"weights": w, "batch": x}).parts["weights"]
        16384
    """
    if m.text is None:
        raise ValueError(f"a breakdown wants a compiled program, got an estimate for {m.device}")
    sizes = {name: device_bytes(tree) for name, tree in arguments.items()}
    parts = {name: n for name, n in sizes.items() if n}
    parts["arguments, other"] = m.arguments - sum(parts.values())
    parts["outputs"] = m.outputs - m.aliased
    trained = [arguments.get(name) for name in ("adapters", "weights")]
    shapes = {_sides(x.shape) for tree in trained for x in jax.tree.leaves(tree)}
    shapes |= {_sides(x.shape[1:]) for tree in trained for x in jax.tree.leaves(tree)}
    stacks = [x.shape[0] for tree in trained for x in jax.tree.leaves(tree) if len(x.shape) > 2]
    layers = max(set(stacks), key=stacks.count, default=0)
    buffers = at_peak(hlo.read(m.text))
    is_backward = "transpose(" in m.text  # the name that JAX gives what gradients are computed by
    purpose = lambda b: _purpose(b, shapes, layers, is_backward)
    temp = m.peak - m.arguments - parts["outputs"]
    # If the buffers add up to more than the compiler reports, scale them down to its sum.
    scale = min(1.0, temp / max(1, sum(b.nbytes for b in buffers)))
    for b in buffers:
        part = f"temp, {purpose(b)}"
        parts[part] = parts.get(part, 0) + int(b.nbytes * scale)
    parts["temp, other"] = temp - sum(n for part, n in parts.items() if part.startswith("temp"))
    frames = lines(m.text)
    largest = tuple(
        {
            "bytes": b.nbytes,
            "type": b.type,
            "part": purpose(b),
            "path": b.path,
            "line": frames.get(b.frame, ""),
        }
        for b in buffers[:LARGEST]
        if b.nbytes > temp / 1000
    )
    return Breakdown(m.device, {name: n for name, n in parts.items() if n}, largest)


def _purpose(b: Buffer, shapes: set[tuple[int, ...]], layers: int, is_backward: bool) -> str:
    """A temporary's purpose, by its path in the program and its shape.

    `shapes` are the sorted shapes of what is trained, `layers` the length of the stack of layers;
    `is_backward` says whether the program has a backward pass.
    """
    sides = [int(n) for n in re.search(r"\[([\d,]*)\]", b.type)[1].split(",") if n]
    if re.search(r"\b(loss|logits)\b", b.path):
        return "logits"
    if _sides(sides) in shapes:
        gradient = "transpose(" in b.path or not re.search(r"/|optimizer", b.path)
        return "gradients" if gradient and is_backward else "copies of weights"
    if "optimizer" in b.path:
        return "optimizer at work"
    kept = is_backward and layers and sides[:1] == [layers]
    return "kept for the backward pass" if kept else "at work"


def _sides(shape: Any) -> tuple[int, ...]:
    """A shape sorted by size, without ones: a compiler may transpose and squeeze."""
    return tuple(sorted(n for n in shape if n > 1))


def plot(
    breakdowns: Mapping[str, Breakdown],
    path: str | os.PathLike | None = None,
    limit: int | None = None,
) -> Picture:
    """Draws a stacked bar for each named breakdown, with the limit as a dashed line.

    With `path`, the picture is written as a PNG, too.

    Raises:
        ImportError: matplotlib is missing.
    """
    names = list(dict.fromkeys(part for b in breakdowns.values() for part in b.parts))
    figure = new_figure(3 + 1.6 * len(breakdowns), 5)
    axes = figure.subplots()
    base = dict.fromkeys(breakdowns, 0.0)
    for i, part in enumerate(names):
        heights = [b.parts.get(part, 0) / 2**30 for b in breakdowns.values()]
        color = f"C{i}" if i < 10 else (0.2, 0.2, 0.2, (i - 9) / 8)
        axes.bar(list(base), heights, 0.6, list(base.values()), label=part, color=color)
        base = {name: base[name] + h for name, h in zip(base, heights)}
    if limit:
        axes.axhline(limit / 2**30, color="black", linestyle="--", label="limit")
    devices = dict.fromkeys(b.device for b in breakdowns.values())
    axes.set(ylabel="GiB on one device", title=", ".join(devices))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))
    picture = Picture(figure)
    if path is not None:
        picture.save(path)
    return picture
