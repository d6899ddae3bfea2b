"""Writes layers and models as ONNX files that every engine reads, DeepSparse 1.8 with its old onnx, too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from sparseinfer import _packages

# The newest versions that all engines read.
_OPSET, _MODEL_OPSET, _IR = 13, 14, 8


def layer_graphs(
    weight: Tensor, bias: Tensor, x: Tensor, scales: Tensor | None, folder: Path
) -> Mapping[str, Path]:
    """Files of a layer y [m, n] = x [m, k] · Wᵀ + b, by the form of their graph.

    weight   [n, k] float32; int8 where there are `scales` [n], float32
    x        [m, k] float32, which says m, and the range of int8

    Of float32: "matmul"; "conv", the same as a convolution over one pixel, which DeepSparse computes in
    another way. Of integers: "int8", x rounded to 8 bits by one scale that is known beforehand, which is less
    work than a scale for each token. RuntimeError: onnx is missing.
    """
    onnx = _onnx()
    m, k, n = x.shape[0], x.shape[1], weight.shape[0]
    node = onnx.helper.make_node
    parts = {"b": bias.numpy()}
    if scales is None:
        columns = {**parts, "w": np.ascontiguousarray(weight.numpy().T)}
        matmul = [node("MatMul", ["x", "w"], ["xw"]), node("Add", ["xw", "b"], ["y"])]
        pixels = {**parts, "w": weight.numpy().reshape(n, k, 1, 1)}
        conv = [node("Conv", ["x", "w", "b"], ["y"])]
        return {
            "matmul": _write(folder / "matmul.onnx", matmul, columns, (m, k), (m, n)),
            "conv": _write(folder / "conv.onnx", conv, pixels, (m, k, 1, 1), (m, n, 1, 1)),
        }
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32((high - low) / 255)
    integers = {
        **parts,
        "w": np.ascontiguousarray(weight.numpy().T),
        "step": np.asarray(step),
        "zero": np.asarray(round(-low / step), np.uint8),
        "none": np.asarray(0, np.int8),
        "scales": scales.numpy() * step,
    }
    nodes = [
        node("QuantizeLinear", ["x", "step", "zero"], ["rounded"]),
        node("MatMulInteger", ["rounded", "w", "zero", "none"], ["sums"]),
        node("Cast", ["sums"], ["wide"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["wide", "scales"], ["scaled"]),
        node("Add", ["scaled", "b"], ["y"]),
    ]
    return {"int8": _write(folder / "int8.onnx", nodes, integers, (m, k), (m, n))}


def model_graph(
    model: nn.Module, run: Callable[[nn.Module, Any], Tensor], inputs: Any, path: Path
) -> tuple[Path, tuple[Tensor, ...]]:
    """A file of what `run(model, inputs)` computes, for inputs of these shapes, and the tensors it takes."""
    _onnx()
    tensors, spec = tree_flatten(inputs)

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Tensor) -> Tensor:
            return run(self.model, tree_unflatten(list(given), spec))

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter that writes old opsets is deprecated
        torch.onnx.export(Run().eval(), tuple(tensors), str(path), opset_version=_MODEL_OPSET, dynamo=False)
    return path, tuple(tensors)


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise _packages.missing("peers", "onnx", "onnx") from None
    return onnx


def _write(
    path: Path, nodes: list[Any], constants: Mapping[str, Any], x: tuple[int, ...], y: tuple[int, ...]
) -> Path:
    onnx = _onnx()
    value = onnx.helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "layer",
        [value("x", float32, x)],
        [value("y", float32, y)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR
    onnx.save(model, str(path))
    return path
