"""at_peak: which buffers are live when a scheduled program uses most memory, from its text alone.

The compiler reports how many bytes of temporaries a program takes, but not which ones. This module
walks through the operations in scheduled order. A result is live from its operation to its last
use; it takes the memory of an operand of its size whose last use that operation is. An array that
becomes part of a loop's result lies in the loop's carry.
"""

import dataclasses
import re

from .hlo import Op, Program, shapes

_SAME_BUFFERS = {"tuple", "bitcast", "opt-barrier", "while"}  # results lie in the operands' buffers
_VIEWS = {"tuple", "get-tuple-element", "bitcast", "opt-barrier"}  # these read no numbers
_NO_BUFFER = {"parameter", "constant", "iota", "after-all", "partition-id", "replica-id"}
_LIBRARIES = re.compile(r"/(jax|flax|optax|concurrent)/|^<")
_OURS = re.compile(
    r"/jaxmem/(core/(encoded_product|lifting|primitive_rules|replay|jaxpr_rewrites)"
    r"|planner/search|compiler/(memory_analysis|compile_subprocess|compile_worker))\.py$"
)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One allocation of main memory: its bytes and the operation that makes it."""

    nbytes: int
    op: Op
    type: str  # such as "bf16[4,1024]"
    inner: Op | None = None  # the last operation in a fusion that names its source

    @property
    def path(self) -> str:
        """The operation's path in the traced function, or its kind if the text has no path."""
        matches = (re.search(r'op_name="((?:[^"\\]|\\.)*)"', op.rest) for op in self._sources)
        path = next((match[1] for match in matches if match), "")
        return re.sub(r"^jit\(program\)/call_exported(/|$)", "", path) or self.op.kind

    @property
    def frame(self) -> int:
        """The number of the operation's source frame (see `lines`); 0 if the text has none."""
        matches = (re.search(r"stack_frame_id=(\d+)", op.rest) for op in self._sources)
        return next((int(match[1]) for match in matches if match), 0)

    @property
    def _sources(self) -> list[Op]:
        """The operations whose lines may name the source."""
        return [self.op, *([self.inner] if self.inner else [])]


_NONE = Buffer(0, None, "")


def at_peak(program: Program) -> list[Buffer]:
    """The temporaries that are live when the program uses most memory, largest first.

    Arguments, results, padding and fragmentation are not counted.
    """
    return sorted(_fullest(program, program.entry), key=lambda b: -b.nbytes)


def lines(text: str) -> dict[int, str]:
    """{frame: "file:line"} of a program's text: the innermost line outside JAX, Flax and jaxmem."""
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
    return {key: line for key in frames if (line := _users_line(frames, key))}


def _users_line(frames: dict[int, tuple[tuple[str, str], int]], key: int) -> str:
    """The innermost "file:line" of a frame that the user wrote, or "".

    `frames` is {frame: ((file, line), parent frame)}.
    """
    while key in frames:
        (file, line), parent = frames[key]
        if not _LIBRARIES.search(file) and not _OURS.search(file):
            return f"{file}:{line}"
        key = parent if parent < key else 0
    return ""


def _fullest(program: Program, computation: str) -> list[Buffer]:
    """The live buffers of a computation, and of computations it runs, when they are largest."""
    values, last = _flow(program, computation)
    returned = set(map(id, values[program.root(computation).name]))
    live: dict[int, Buffer] = {}
    best: list[Buffer] = []
    most, now = 0, 0  # bytes
    for i, op in enumerate(program.computations[computation]):
        new = [x for x in values[op.name] if x is not None and x.op is op]
        new = [x for x in new if id(x) not in returned and id(x) not in live]
        for x in new:
            if _elementwise(op):  # the result takes the memory of an operand that ends here
                ending = (y for y in live.values() if last[id(y)] == i and y.nbytes == x.nbytes)
                now -= live.pop(id(next(ending, None)), _NONE).nbytes
            live[id(x)] = x
            now += x.nbytes
        inside = _inside(program, op)
        total = now + sum(b.nbytes for b in inside)
        if total > most:
            most, best = total, [*live.values(), *inside]
        for key in [key for key in live if last[key] <= i]:
            now -= live.pop(key).nbytes
    return best


def _elementwise(op: Op) -> bool:
    """Whether the result may take the memory of an operand."""
    return "kind=kLoop" in op.rest or op.kind in ("add", "multiply", "subtract", "select", "negate")


def _inside(program: Program, op: Op) -> list[Buffer]:
    """The live buffers inside a loop, call or branch when they are largest."""
    if op.kind not in ("while", "call", "conditional"):
        return []
    peaks = (_fullest(program, name) for name in op.calls)
    return max(peaks, key=lambda bs: sum(b.nbytes for b in bs), default=[])


def _flow(program: Program, computation: str) -> tuple[dict, dict]:
    """({operation: the buffer of each array of its result}, {buffer's id: place of last use})."""
    values: dict[str, list] = {}
    last: dict[int, int] = {}
    for i, op in enumerate(program.computations[computation]):
        operands = [values.get(name, []) for name in op.operands]
        values[op.name] = _values(program, op, operands)
        read = values[op.name] if op.kind in _VIEWS else [x for xs in operands for x in xs]
        for x in [*read, *values[op.name]]:
            if x is not None:
                last[id(x)] = i
    return values, last


def _values(program: Program, op: Op, operands: list[list[Buffer | None]]) -> list[Buffer | None]:
    """The buffer of each array of an operation's result.

    None stands for an array outside main memory, or of the caller (an argument). `operands` has the
    buffers of each operand.
    """
    kinds = _types(op)
    flat = [x for xs in operands for x in xs]
    if op.kind in _NO_BUFFER:
        buffers = [None] * len(kinds)
    elif op.kind == "get-tuple-element":
        index = int(re.search(r"index=(\d+)", op.rest)[1])
        buffers = [flat[index] if index < len(flat) else None]
    elif op.kind in _SAME_BUFFERS:
        buffers = flat[: len(kinds)]
    elif op.kind.endswith("-done"):
        started = [x for x in flat if x is not None and x.op.kind.endswith("-start")]
        buffers = (started + [None] * len(kinds))[: len(kinds)]
    else:
        inner = _source_in_fusion(program, op)
        buffers = [
            Buffer(n, op, name, inner) if not space and n else None for n, space, name in kinds
        ]
        if op.kind.endswith("-start") and len(kinds) >= 2 * len(flat):  # operands come first
            buffers[: len(flat)] = flat
        for n, position in enumerate(_in_place(program, op)):
            if position is not None and n < len(buffers):
                buffers[n] = (operands[position] or [None])[0]
    return buffers


def _in_place(program: Program, op: Op) -> list[int | None]:
    """For each array of the result, the position of the operand that it updates, or None."""
    if op.kind == "dynamic-update-slice":
        return [0]
    if op.kind != "fusion":
        return []
    inner = op.calls[0]
    root = program.root(inner)
    names = root.operands if root.kind == "tuple" else (root.name,)
    positions = []
    for name in names:
        x, updated = program.ops[inner, name], False
        while x.kind in ("bitcast", "dynamic-update-slice", "copy") and x.operands:
            updated |= x.kind == "dynamic-update-slice"
            x = program.ops[inner, x.operands[0]]
        positions.append(int(x.operands[0]) if updated and x.kind == "parameter" else None)
    return positions


def _types(op: Op) -> list[tuple[int, int, str]]:
    """(bytes, memory space, type such as "f32[2,3]") of each array of the result."""
    names = re.findall(r"[a-z]\w*\[[\d,]*\]", op.type)
    return [(size, space, name) for (size, space), name in zip(shapes(op.type), names)]


def _source_in_fusion(program: Program, op: Op) -> Op | None:
    """The last operation in a fusion that names its source, if the fusion itself does not."""
    if op.kind != "fusion" or "op_name" in op.rest:
        return None
    inside = reversed(program.computations[op.calls[0]])
    return next((x for x in inside if "stack_frame_id" in x.rest), None)
