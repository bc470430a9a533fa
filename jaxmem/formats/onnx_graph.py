"""The weights of a PyTorch model in an ONNX file, by the names of their modules.

The exporter keeps the names of most parameters. It transposes the matrix of a linear layer and
names it `onnx::MatMul_123`: the bias that is added to the product then has the module's name, or,
where there is none, the product itself (`/encoder/layer.0/output/dense/MatMul`).
"""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..core.lazy import Lazy
from .byte_ranges import check_regular

_PRODUCTS = ("MatMul", "Gemm")
_MOST_BYTES = 2**31  # of a file; larger models have their weights in files beside it


def onnx_weights(path: pathlib.Path) -> dict[str, Lazy]:
    """The floating-point tensors of the file by name; matrices of linear layers are (out, in).

    All are in memory, as the file is one protobuf message.

    Raises:
        ValueError: the file is no ONNX file, has its weights in another file, or multiplies codes;
            two tensors would have the same name.
        ImportError: the package `onnx` is missing.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> from onnx import TensorProto, helper, numpy_helper, save
        >>> w = numpy_helper.from_array(np.ones((4, 3), np.float32), "onnx::MatMul_7")
        >>> nodes = [helper.make_node("MatMul", ["x", w.name], ["y"], "/layer.0/dense/MatMul")]
        >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy")
        >>> model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [w]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/model.onnx")
        ...     tensors = onnx_weights(pathlib.Path(folder) / "model.onnx")
        >>> {name: tensor.shape for name, tensor in tensors.items()}
        {'layer.0.dense.weight': (3, 4)}
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ImportError(f'reading {path} wants onnx: pip install "jaxmem[onnx]"') from error
    check_regular(path)
    if path.stat().st_size >= _MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, expected less than 2^31")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (DecodeError, ValueError) as error:
        raise ValueError(f"{path} is no whole ONNX file: {error}") from error
    if not graph.node:
        raise ValueError(f"{path} is no ONNX file: it has no graph")
    _check_computed(graph, path, onnx.TensorProto.EXTERNAL)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    tensors = {x.name: x for x in graph.initializer if x.data_type in floats}
    matrices = dict(_matrices(graph, tensors))
    read = onnx.numpy_helper.to_array
    result: dict[str, Lazy] = {}
    for name, tensor in tensors.items():
        array = read(tensor)
        module, turned = matrices.get(name, (name, False))
        if module in result:
            raise ValueError(f"{path} has two tensors for {module}")
        result[module] = _lazy(array.T if turned and array.ndim == 2 else array)
    return result


def _check_computed(graph: Any, path: pathlib.Path, external: int) -> None:
    """Refuses a graph whose weights are codes, or lie in another file."""
    kinds = {node.op_type for node in graph.node}
    coded = sorted(x for x in kinds if "Quantize" in x or "QLinear" in x or "Integer" in x)
    if coded:
        raise ValueError(
            f"{path} multiplies codes ({', '.join(coded)}), expected floating-point weights; load "
            "the checkpoint that it was made of"
        )
    if any(x.data_location == external for x in graph.initializer):
        raise ValueError(f"{path} has its weights in another file, expected them in it")


def _matrices(graph: Any, tensors: dict[str, Any]) -> Iterable[tuple[str, tuple[str, bool]]]:
    """(a matrix's name, (that of its module's weight, whether it is (in, out))) of each product."""
    added = {}
    for node in graph.node:
        if node.op_type == "Add":
            biases = [x for x in node.input if x in tensors and x.endswith(".bias")]
            added |= {x: biases[0] for x in node.input if biases and x not in tensors}
    for node in graph.node:
        if node.op_type not in _PRODUCTS or len(node.input) < 2 or node.input[1] not in tensors:
            continue
        name = node.input[1]
        transposed = any(x.name == "transB" and x.i for x in node.attribute)
        bias = added.get(node.output[0], "")
        if node.op_type == "Gemm" and len(node.input) > 2:
            bias = node.input[2]
        if name.endswith(".weight"):
            module = name
        elif bias.endswith(".bias"):
            module = f"{bias.removesuffix('.bias')}.weight"
        elif node.name.count("/") > 1:
            module = f"{node.name.strip('/').rpartition('/')[0].replace('/', '.')}.weight"
        else:
            continue
        yield name, (module, not transposed)


def _lazy(array: np.ndarray) -> Lazy:
    return Lazy(array.shape, array.dtype, lambda _: array)


def named(tensors: dict[str, Lazy], names: Iterable[str], path: pathlib.Path) -> dict[str, Lazy]:
    """The tensors whose names are those of `names`, alone or after a prefix, by these names.

    A model inside another has a prefix, such as `model.0.auto_model.`, which all names share.

    Raises:
        ValueError: tensors with two prefixes have a name.

    Example:
        >>> held = {"0.bert.a.weight": _lazy(np.ones(2)), "0.bert.c": _lazy(np.ones(1))}
        >>> list(named(held, ["a.weight", "b.weight"], pathlib.Path("model.onnx")))
        ['a.weight']
    """
    result = {}
    for name in names:
        holders = [x for x in tensors if x == name or x.endswith(f".{name}")]
        if len(holders) > 1:
            raise ValueError(f"{path} has {' and '.join(holders)}, which are both {name}")
        if holders:
            result[name] = tensors[holders[0]]
    return result
