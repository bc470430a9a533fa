"""Plan: {path: codec}, the plain value between deciding and doing."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .. import codecs, solvers
from ..core.arguments import INTEGERS, MAPPING, OPTIONAL_MAPPING, TREE, shown, takes
from ..core.codec import is_codec
from ..core.paths import check_same_tree, match, matcher, path_of_layers, paths
from ..core.pictures import Picture, html_table, new_figure
from ..core.usage import summed_axes
from ..io.json_fields import parse_object
from .plan_paths import layer_readings, layers_of


class Plan(Mapping):
    """The codec of each weight; weights whose path is not in the plan stay as they are.

    A plan is a mapping: print it, compare it, change it by `plan | {"head/kernel": jm.Int(8)}`.
    `axes` has the axes that the products of a weight sum over, {path of a leaf: axes}, as the plan
    was made for them. `encode` reads them, so that nobody has to give `uses` a second time.

    Raises:
        TypeError: a path is no string, or a value is neither a codec nor None.

    Example:
        >>> import jaxmem as jm
        >>> plan = Plan({"mlp/kernel": jm.Int(4, group=32)})
        >>> Plan.from_json(plan.to_json()) == plan
        True
        >>> print(plan)
        mlp/kernel  Int(bits=4, group=32, symmetric=True)
    """

    def __init__(
        self, items: Mapping[str, Any] = (), axes: Mapping[str, tuple[int, ...]] | None = None
    ):
        try:
            self._codecs = dict(items)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"a Plan takes a mapping from paths to codecs, got {shown(items)}"
            ) from error
        if not (axes is None or MAPPING.accepts(axes)):
            raise TypeError(f"a Plan takes axes by path, as a mapping, got {shown(axes)}")
        inherited = items.axes if isinstance(items, Plan) else {}
        self.axes = {}
        for path, summed in (inherited if axes is None else axes).items():
            if not INTEGERS.accepts(summed):
                raise TypeError(
                    f"{path}: the axes are {shown(summed)}, expected a tuple of ints, such as (-2,)"
                )
            self.axes[path] = tuple(summed)
        for path, codec in self._codecs.items():
            if not isinstance(path, str):
                raise TypeError(f"a plan names {path!r}, expected the path of a leaf, as a string")
            if codec is not None and not is_codec(codec):
                raise TypeError(
                    f"{path}: {codec!r} is no codec, expected one such as Int(4), or None"
                )

    def __getitem__(self, path: str) -> Any:
        return self._codecs[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._codecs)

    def __len__(self) -> int:
        return len(self._codecs)

    def __or__(self, other: Mapping[str, Any]) -> "Plan":
        added = other.axes if isinstance(other, Plan) else {}
        return Plan({**self._codecs, **other}, axes=self.axes | added)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"Plan({self._codecs!r})"

    def __str__(self) -> str:
        width = max(map(len, self._codecs), default=0)
        return "\n".join(f"{path:{width}}  {codec}" for path, codec in self._codecs.items())

    def _repr_html_(self) -> str:
        return html_table(("path", "codec"), self._codecs.items())

    def plot(self) -> Picture:
        """A picture of which weights, and which layers of a stack, have which codec.

        Raises:
            ImportError: matplotlib is missing.
        """
        pieces = [(*layers_of(path), str(codec)) for path, codec in self._codecs.items()]
        names = list(dict.fromkeys(name for name, _, _ in pieces))
        colors = {codec: f"C{i}" for i, codec in enumerate(dict.fromkeys(c for *_, c in pieces))}
        last = max((layers.stop for _, layers, _ in pieces if layers), default=1)
        figure = new_figure(8, 1.2 + 0.28 * len(names) + 0.2 * len(colors))
        axes = figure.subplots()
        for name, layers, codec in sorted(pieces, key=lambda piece: piece[1] is not None):
            begin, end = (layers.start, layers.stop) if layers else (0, last)
            axes.barh(names.index(name), end - begin, 0.7, begin, color=colors[codec])
        for codec, color in colors.items():
            axes.barh(0, 0, color=color, label=codec)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(title=f"{len(names)} weights, {len(colors)} codecs", xlabel="layer")
        figure.legend(loc="outside lower center", fontsize=8)
        return Picture(figure)

    def to_json(self) -> str:
        """The plan as JSON text; the same plan gives the same text."""
        data = {path: _to_data(codec) for path, codec in self.items()}
        return json.dumps({"axes": self.axes, "codecs": data} if self.axes else data, indent=1)

    @classmethod
    def from_json(cls, text: str, classes: tuple[type, ...] = ()) -> "Plan":
        """The plan that `to_json` wrote; `classes` lists codec classes of your own.

        Raises:
            ValueError: `text` is not the JSON text of a plan, or it names an unknown codec.
        """
        try:
            data, axes = _codecs_and_axes(parse_object(text, "it"))
            known = {**vars(codecs), **vars(solvers), **{c.__name__: c for c in classes}}
            return cls({path: _from_data(value, known) for path, value in data.items()}, axes)
        except (ValueError, AttributeError, TypeError) as e:
            raise ValueError(f"not the JSON text of a Plan: {e}") from e


@takes(params=TREE, rules=MAPPING, uses=OPTIONAL_MAPPING)
def choose(params: Any, rules: Mapping[str, Any], uses: Mapping[str, Any] | None = None) -> Plan:
    """A plan by rules: each leaf gets the codec of the first regex that matches its whole path.

    A leaf that no rule matches stays as it is. A rule may also name layers of stacked leaves, such
    as `layers[3]/.*` or `layers[0:8]/mlp/.*`; for these layers it takes precedence over rules for
    whole leaves. A rule that is the path of a leaf names that leaf only. With `uses`, from
    `jm.uses`, the plan carries the axes that each weight is summed over.

    Raises:
        ValueError: a rule matches no leaf, or is no regex.
        TypeError: `rules` is no mapping of strings to codecs.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> jm.choose({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}, {".*kernel": jm.Int(4)})
        Plan({'kernel': Int(bits=4, group=None, symmetric=True)})
        >>> print(jm.choose({"a": {"w": jnp.ones((6, 4, 4))}}, {".*": jm.Int(4), "a[0:2]/w": None}))
        a/w       Int(bits=4, group=None, symmetric=True)
        a[0:2]/w  None
    """
    names = paths(params)
    check_same_tree(names, uses=uses)
    of_layers = {rule: _layer_rule(rule, names) for rule in rules}
    plan = match(names, {rule: codec for rule, codec in rules.items() if not of_layers[rule]})
    for rule, codec in rules.items():
        if of_layers[rule]:
            pattern, layers = of_layers[rule]
            for path in match(names, {pattern: codec}):
                plan.setdefault(path_of_layers(path, layers.start, layers.stop), codec)
    return Plan(plan, {path: summed_axes(path, uses) for path in names if path in (uses or {})})


def _layer_rule(rule: str, names: list[str]) -> tuple[str, slice] | None:
    """(regex of the leaves, their layers) if a rule names layers; None if it names whole leaves."""
    matches = lambda pattern: any(map(matcher(pattern, names), names))
    readings = layer_readings(rule) if isinstance(rule, str) else []
    if not readings or matches(rule):
        return None
    return next((r for r in readings if matches(r[0])), readings[0])


def _codecs_and_axes(data: Any) -> tuple[Any, dict]:
    """(the codecs, the axes) in the JSON data of a plan; older plans have codecs only."""
    if isinstance(data, dict) and set(data) == {"axes", "codecs"}:
        axes = data["axes"]
        if isinstance(axes, dict) and all(isinstance(a, list) for a in axes.values()):
            return data["codecs"], axes
    return data, {}


def _to_data(value):
    """A codec, or a field of one, as plain JSON data: {class name: fields}.

    A field that is `added` to an older codec is written where it is set, so that a plan without it
    stays the same text.
    """
    if dataclasses.is_dataclass(value):
        pairs = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        pairs = [(f, x) for f, x in pairs if not (f.metadata.get("added") and x == f.default)]
        return {type(value).__name__: {f.name: _to_data(x) for f, x in pairs}}
    if isinstance(value, tuple):
        return [_to_data(v) for v in value]
    return value


def _from_data(value, known):
    """The value that `_to_data` wrote; `known` maps names to codec classes."""
    if isinstance(value, list):
        return tuple(_from_data(v, known) for v in value)
    if not isinstance(value, dict):
        return value
    name, fields = next(iter(value.items()), (None, {}))
    codec = known.get(name)
    if not (isinstance(codec, type) and dataclasses.is_dataclass(codec)):
        raise ValueError(f"unknown codec {name!r}; name its class in classes=(...)")
    return codec(**{k: _from_data(v, known) for k, v in fields.items()})
