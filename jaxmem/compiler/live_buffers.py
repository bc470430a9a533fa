"""at_peak: which buffers are live when a scheduled program holds most, from its text alone.

The compiler says how many bytes of temporaries a program takes, not which. Operations are walked in
the order of the schedule; a result lives from where it is made to its last use, in the place of an
operand that ends there if it has one of its size. What reaches a loop's result lies in its carry.
"""

import dataclasses
import re

from .hlo import Op, Program, shapes

_SAME = {"tuple", "bitcast", "opt-barrier", "while"}
_VIEWS = {"tuple", "get-tuple-element", "bitcast", "opt-barrier"}  # they read nothing
_NOTHING = {"parameter", "constant", "iota", "after-all", "partition-id", "replica-id"}
_LIBRARIES = re.compile(r"/(jax|flax|optax|concurrent)/|^<")
_OURS = re.compile(
    r"/jaxmem/(core/(lifting|primitive_rules|replay|scans)|planner/search"
    r"|compiler/(footprint|compile_subprocess|compile_worker))\.py$"
)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One allocation of main memory: its bytes and the operation that makes it."""

    nbytes: int
    op: Op
    type: str  # such as "bf16[4,1024]"
    inner: Op | None = None  # the last of a fusion's operations that says where it is from

    @property
    def path(self) -> str:
        """The operation's path in the traced function; what it is where it has none."""
        said = (re.search(r'op_name="((?:[^"\\]|\\.)*)"', op.rest) for op in self._sayers)
        path = next((found[1] for found in said if found), "")
        return re.sub(r"^jit\(program\)/call_exported(/|$)", "", path) or self.op.kind

    @property
    def frame(self) -> int:
        """The number of its source frame (see `lines`); 0 if it has none."""
        said = (re.search(r"stack_frame_id=(\d+)", op.rest) for op in self._sayers)
        return next((int(found[1]) for found in said if found), 0)

    @property
    def _sayers(self) -> list[Op]:
        return [self.op, *([self.inner] if self.inner else [])]


_NONE = Buffer(0, None, "")


def at_peak(program: Program) -> list[Buffer]:
    """The temporaries that are live at the program's fullest moment, largest first.

    Arguments and results are not among them. Padding and fragmentation are not counted.
    """
    return sorted(_fullest(program, program.entry), key=lambda b: -b.nbytes)


def lines(text: str) -> dict[int, str]:
    """{frame: "file:line"} of a program's text: the innermost line that is not of JAX's own."""
    tables = {
        name: dict(re.findall(r"^(\d+) (.+)$", body, flags=re.M))
        for name, body in re.findall(r"^(\w+)\n((?:\d+ .+\n)+)", text, flags=re.M)
    }
    files = {k: v.strip('"') for k, v in tables.get("FileNames", {}).items()}
    places = {}
    for key, value in tables.get("FileLocations", {}).items():
        place = re.match(r"\{file_name_id=(\d+) function_name_id=\d+ line=(\d+)", value)
        places[key] = files[place[1]], place[2]
    frames = {}
    for key, value in tables.get("StackFrames", {}).items():
        frame = re.match(r"\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", value)
        frames[int(key)] = places[frame[1]], int(frame[2] or 1) - 1
    return {key: found for key in frames if (found := _own(frames, key))}


def _own(frames: dict, key: int) -> str:
    while key in frames:
        (file, line), parent = frames[key]
        if not _LIBRARIES.search(file) and not _OURS.search(file):
            return f"{file}:{line}"
        key = parent if parent < key else 0
    return ""


def _fullest(program: Program, computation: str) -> list[Buffer]:
    """The buffers of a computation, and of those it runs, at its fullest moment."""
    values, last = _flow(program, computation)
    given_back = set(map(id, values[program.root(computation).name]))
    live: dict[int, Buffer] = {}
    best: list[Buffer] = []
    most, here = 0, 0
    for i, op in enumerate(program.computations[computation]):
        made = [x for x in values[op.name] if x is not None and x.op is op]
        made = [x for x in made if id(x) not in given_back and id(x) not in live]
        for x in made:
            if _elementwise(op):
                ending = (y for y in live.values() if last[id(y)] == i and y.nbytes == x.nbytes)
                here -= live.pop(id(next(ending, None)), _NONE).nbytes
            live[id(x)] = x
            here += x.nbytes
        inside = _inside(program, op)
        total = here + sum(b.nbytes for b in inside)
        if total > most:
            most, best = total, [*live.values(), *inside]
        for key in [key for key in live if last[key] <= i]:
            here -= live.pop(key).nbytes
    return best


def _elementwise(op: Op) -> bool:
    """Whether the result may take the place of an operand."""
    return "kind=kLoop" in op.rest or op.kind in ("add", "multiply", "subtract", "select", "negate")


def _inside(program: Program, op: Op) -> list[Buffer]:
    if op.kind not in ("while", "call", "conditional"):
        return []
    found = (_fullest(program, name) for name in op.calls)
    return max(found, key=lambda bs: sum(b.nbytes for b in bs), default=[])


def _flow(program: Program, computation: str) -> tuple[dict, dict]:
    """({operation: the buffer behind each array of its result}, {buffer's id: its last use})."""
    values: dict[str, list] = {}
    last: dict[int, int] = {}
    for i, op in enumerate(program.computations[computation]):
        given = [values.get(name, []) for name in op.operands]
        values[op.name] = _values(program, op, given)
        read = values[op.name] if op.kind in _VIEWS else [x for xs in given for x in xs]
        for x in [*read, *values[op.name]]:
            if x is not None:
                last[id(x)] = i
    return values, last


def _values(program: Program, op: Op, given: list) -> list:
    """The buffers of an operation's result; None for what lies elsewhere or with the caller."""
    kinds = _types(op)
    flat = [x for xs in given for x in xs]
    if op.kind in _NOTHING:
        found = [None] * len(kinds)
    elif op.kind == "get-tuple-element":
        index = int(re.search(r"index=(\d+)", op.rest)[1])
        found = [flat[index] if index < len(flat) else None]
    elif op.kind in _SAME:
        found = flat[: len(kinds)]
    elif op.kind.endswith("-done"):
        made = [x for x in flat if x is not None and x.op.kind.endswith("-start")]
        found = (made + [None] * len(kinds))[: len(kinds)]
    else:
        inner = _speaker(program, op)
        found = [
            Buffer(n, op, name, inner) if not space and n else None for n, space, name in kinds
        ]
        if op.kind.endswith("-start") and len(kinds) >= 2 * len(flat):  # operands come first
            found[: len(flat)] = flat
        for n, at in enumerate(_in_place(program, op)):
            if at is not None and n < len(found):
                found[n] = (given[at] or [None])[0]
    return found


def _in_place(program: Program, op: Op) -> list[int | None]:
    """For each array of the result, the operand that it is an update of."""
    if op.kind == "dynamic-update-slice":
        return [0]
    if op.kind != "fusion":
        return []
    inner = op.calls[0]
    root = program.root(inner)
    names = root.operands if root.kind == "tuple" else (root.name,)
    found = []
    for name in names:
        x, updated = program.ops[inner, name], False
        while x.kind in ("bitcast", "dynamic-update-slice", "copy") and x.operands:
            updated |= x.kind == "dynamic-update-slice"
            x = program.ops[inner, x.operands[0]]
        found.append(int(x.operands[0]) if updated and x.kind == "parameter" else None)
    return found


def _types(op: Op) -> list[tuple[int, int, str]]:
    names = re.findall(r"[a-z]\w*\[[\d,]*\]", op.type)
    return [(size, space, name) for (size, space), name in zip(shapes(op.type), names)]


def _speaker(program: Program, op: Op) -> Op | None:
    if op.kind != "fusion" or "op_name" in op.rest:
        return None
    inside = reversed(program.computations[op.calls[0]])
    return next((x for x in inside if "stack_frame_id" in x.rest), None)
