"""The arrays and words of cn2en, out of its pickles: writes cn2en.npz.

    pip install "pip<24.1"            # newer ones refuse the metadata of this package
    pip download --no-deps cn2en==0.0.118
    python experiments/quality/cn2en_arrays.py cn2en*.whl cn2en.npz

The wheel (MIT) has its weights and words in pickles, which could run any code. jaxmem reads none;
`values` below takes the opcodes of these three files, whose sha256 is checked, and builds numbers,
texts, tuples, dicts and arrays of them. It imports and calls nothing that a file names, and refuses
every opcode and every name that it does not list. The file has the tensors by their names in
PyTorch, after "encoder." and "decoder.", and `characters` and `words` in the order of their ids.
"""

import argparse
import hashlib
import io
import math
import pathlib
import pickletools
import zipfile

import numpy as np

SHA256 = {
    "cn2en/model.pth": "ec6415ab27b1fef85b1e8d7334b5530152061992f9732b61a67dcb649369a6cb",
    "cn2en/input_lang.pkl": "ce0df7c56c3d1f06fc5387227b84988f1c69759fd69a96f9ad38fa78efe97f65",
    "cn2en/output_lang.pkl": "9ec82de5ecb91811b7e400c69136dbe3af24bf25e4cc9db0c29b744ed6830152",
}
CONSTANTS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "NEWFALSE": bool}
TENSOR, STORAGE = "torch._utils _rebuild_tensor_v2", "torch FloatStorage"
OBJECTS = ("collections OrderedDict", "__main__ Lang")
MARK = object()


def values(data: bytes, storages: dict[str, bytes]):
    """What a pickle says: an object is the dict of its fields, a tensor an array of f32."""
    stack, memo = [], {}

    def last(count: int) -> list:
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    def after_mark() -> list:
        return last(next(i for i, x in enumerate(stack[::-1], 1) if x is MARK))[1:]

    def name(text: str) -> None:
        if text not in (TENSOR, STORAGE, *OBJECTS):
            raise ValueError(f"the pickle names {text!r}, which is none of cn2en's")
        stack.append(text)

    def make(text: str, arguments: tuple) -> None:
        if text not in (TENSOR, *OBJECTS) or (text != TENSOR and arguments):
            raise ValueError(f"the pickle calls {text!r} with {arguments}")
        stack.append(array(storages, *arguments[:4]) if text == TENSOR else {})

    put = lambda at: memo.update({len(memo) if at is None else at: stack[-1]})
    get = lambda at: stack.append(memo[at])
    add = lambda items: stack[-1].update(zip(items[::2], items[1::2], strict=True))
    actions = {
        "MARK": lambda _: stack.append(MARK),
        **{opcode: lambda _, kind=kind: stack.append(kind()) for opcode, kind in EMPTY.items()},
        **{"BINPUT": put, "MEMOIZE": put, "BINGET": get, "LONG_BINGET": get},
        "GLOBAL": name,
        "STACK_GLOBAL": lambda _: name(" ".join(last(2))),
        "TUPLE": lambda _: stack.append(tuple(after_mark())),
        "TUPLE1": lambda _: stack.append(tuple(last(1))),
        "TUPLE2": lambda _: stack.append(tuple(last(2))),
        "SETITEM": lambda _: add(last(2)),
        "SETITEMS": lambda _: add(after_mark()),
        "BINPERSID": lambda _: None,  # a storage is known by its tuple
        "REDUCE": lambda _: make(*last(2)),
        "NEWOBJ": lambda _: make(*last(2)),
        "BUILD": lambda _: [stack[-1].update(state) for state in [stack.pop()]],
        **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
        **dict.fromkeys(CONSTANTS, stack.append),
    }
    for opcode, value, _ in pickletools.genops(data):
        if opcode.name not in actions:
            raise ValueError(f"the pickle has the opcode {opcode.name}, which cn2en's have not")
        actions[opcode.name](value)
    return stack.pop()


def array(storages: dict, storage: tuple, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    """A tensor whose numbers lie in order in its storage ("storage", kind, key, device, count)."""
    if storage[1] != STORAGE:
        raise ValueError(f"a tensor is of {storage[1]!r}, expected {STORAGE}")
    x = np.frombuffer(storages[storage[2]], "<f4")[offset:][: math.prod(shape)].reshape(shape)
    if x.strides != tuple(4 * s for s in strides):
        raise ValueError(f"a tensor has the strides {strides}, expected those of {shape} in order")
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=zipfile.ZipFile)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    files = {name: args.wheel.read(name) for name in SHA256}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != SHA256[name]:
            raise ValueError(f"{name} is not the file of cn2en 0.0.118")
    weights, characters, words = files.values()
    with zipfile.ZipFile(io.BytesIO(weights)) as archive:
        parts = {x.rpartition("/")[2]: archive.read(x) for x in archive.namelist()}
    tensors = values(parts["data.pkl"], parts)
    of = lambda part: {f"{part}.{name}": x for name, x in tensors[part].items()}
    by_id = lambda data: [x for _, x in sorted(values(data, {})["index2word"].items())]
    texts = {"characters": by_id(characters), "words": by_id(words)}
    np.savez(args.out, **of("encoder"), **of("decoder"), **texts, sha256=SHA256["cn2en/model.pth"])


if __name__ == "__main__":
    main()
