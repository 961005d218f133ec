"""The computation of all-MiniLM-L6-v2 as an ONNX graph, built from its weights, with matrices of 8-bit integers.

Of each column of a matrix the largest value becomes 63: seven bits, so that processors without VNNI do not saturate and give the same vectors. What is
multiplied with it is scaled to 8 bits when it is known, over all that the session is given at once: texts that are encoded together change one
another a little.

BERT (Devlin et al., 2019) with six layers; the output is the mean of the token states, scaled to length one (Reimers and Gurevych, 2019).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The driver's types are partly unknown; what it returns is checked where it enters.

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

BUILDER_VERSION = 2
LAYERS = 6
HIDDEN = 384
HEADS = 12
_EPSILON = 1e-12
_OPSET = 17
_LARGEST = 63


class _Builder:
    def __init__(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names: set[str] = set()

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self._names:
            self._names.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(self, states: str, name: str, output: str) -> str:
        matrix = self.weights[f"{name}.weight"].T
        steps = np.abs(matrix).max(axis=0) / _LARGEST
        whole = self.constant(f"{name}.whole", np.rint(matrix / steps).astype(np.int8))
        zeros = self.constant(f"{name}.zeros", np.zeros(len(steps), dtype=np.int8))
        rounded, step, zero = self.rounded(states)
        product = self.node("MatMulInteger", [rounded, whole, zero, zeros], f"{output}.whole")
        product = self.node("Cast", [product], f"{output}.cast", to=TensorProto.FLOAT)
        scale = self.node("Mul", [step, self.constant(f"{name}.steps", steps.astype(np.float32))], f"{output}.scale")
        product = self.node("Mul", [product, scale], f"{output}.product")
        return self.node("Add", [product, self.weight(f"{name}.bias")], output)

    def rounded(self, states: str) -> tuple[str, str, str]:
        """The states in whole numbers, the step between two, and the number that stands for 0."""
        names = (f"{states}.rounded", f"{states}.step", f"{states}.zero")
        if names[0] not in self._names:
            self._names.add(names[0])
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [states], list(names)))
        return names

    def normalise(self, states: str, name: str, output: str) -> str:
        inputs = [states, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, output, axis=-1, epsilon=_EPSILON)


def build(weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The graph, serialised.

    Inputs are `input_ids` and `attention_mask`, int64 of shape (texts, tokens); the output is `embedding`, float32 of shape (texts, 384), unit vectors.

    Args:
        weights: Tensors by their names in `model.safetensors`.

    Raises:
        KeyError: A tensor is missing.
    """
    b = _Builder(weights)
    states = _embed(b)
    bias = _mask_bias(b)
    for layer in range(LAYERS):
        states = _layer(b, states, bias, layer)
    _pool(b, states)
    shape = ["texts", "tokens"]
    graph = helper.make_graph(
        b.nodes,
        "all-MiniLM-L6-v2",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, shape),
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", HIDDEN])],
        b.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def _embed(b: _Builder) -> str:
    words = b.node("Gather", [b.weight("embeddings.word_embeddings.weight"), "input_ids"], "words")
    shape = b.node("Shape", ["input_ids"], "ids.shape")
    length = b.node("Gather", [shape, b.constant("axis.one", np.array([1], dtype=np.int64))], "length")
    zero = b.constant("zero", np.array([0], dtype=np.int64))
    positions = b.node("Slice", [b.weight("embeddings.position_embeddings.weight"), zero, length, zero], "positions")
    kinds = b.constant("kind", b.weights["embeddings.token_type_embeddings.weight"][0])
    summed = b.node("Add", [words, positions], "embedded.places")
    summed = b.node("Add", [summed, kinds], "embedded.kinds")
    return b.normalise(summed, "embeddings.LayerNorm", "embedded")


def _mask_bias(b: _Builder) -> str:
    mask = b.node("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
    axes = b.constant("mask.axes", np.array([1, 2], dtype=np.int64))
    wide = b.node("Unsqueeze", [mask, axes], "mask.wide")
    absent = b.node("Sub", [b.constant("one.float", np.array(1, dtype=np.float32)), wide], "mask.absent")
    return b.node("Mul", [absent, b.constant("far", np.array(-1e9, dtype=np.float32))], "mask.bias")


def _heads(b: _Builder, states: str, name: str, order: list[int]) -> str:
    split = b.constant("split", np.array([0, 0, HEADS, HIDDEN // HEADS], dtype=np.int64))
    wide = b.node("Reshape", [states, split], f"{name}.split")
    return b.node("Transpose", [wide], f"{name}.heads", perm=order)


def _layer(b: _Builder, states: str, bias: str, layer: int) -> str:
    source = f"encoder.layer.{layer}"
    name = f"layer{layer}"
    query = _heads(
        b, b.linear(states, f"{source}.attention.self.query", f"{name}.query"), f"{name}.query", [0, 2, 1, 3]
    )
    key = _heads(b, b.linear(states, f"{source}.attention.self.key", f"{name}.key"), f"{name}.key", [0, 2, 3, 1])
    value = _heads(
        b, b.linear(states, f"{source}.attention.self.value", f"{name}.value"), f"{name}.value", [0, 2, 1, 3]
    )
    scores = b.node("MatMul", [query, key], f"{name}.scores")
    scale = b.constant("scale", np.array(1 / math.sqrt(HIDDEN // HEADS), dtype=np.float32))
    scores = b.node("Mul", [scores, scale], f"{name}.scaled")
    scores = b.node("Add", [scores, bias], f"{name}.masked")
    weights = b.node("Softmax", [scores], f"{name}.weights", axis=-1)
    context = b.node("MatMul", [weights, value], f"{name}.context")
    context = b.node("Transpose", [context], f"{name}.context.back", perm=[0, 2, 1, 3])
    join = b.constant("join", np.array([0, 0, HIDDEN], dtype=np.int64))
    context = b.node("Reshape", [context, join], f"{name}.context.joined")
    attended = b.linear(context, f"{source}.attention.output.dense", f"{name}.attended")
    attended = b.node("Add", [attended, states], f"{name}.attended.sum")
    attended = b.normalise(attended, f"{source}.attention.output.LayerNorm", f"{name}.attended.norm")
    inner = _gelu(b, b.linear(attended, f"{source}.intermediate.dense", f"{name}.inner"), name)
    outer = b.linear(inner, f"{source}.output.dense", f"{name}.outer")
    outer = b.node("Add", [outer, attended], f"{name}.outer.sum")
    return b.normalise(outer, f"{source}.output.LayerNorm", f"{name}.out")


def _gelu(b: _Builder, states: str, name: str) -> str:
    root = b.constant("sqrt2", np.array(math.sqrt(2), dtype=np.float32))
    scaled = b.node("Div", [states, root], f"{name}.gelu.scaled")
    erf = b.node("Erf", [scaled], f"{name}.gelu.erf")
    shifted = b.node("Add", [erf, b.constant("one.float", np.array(1, dtype=np.float32))], f"{name}.gelu.shifted")
    product = b.node("Mul", [states, shifted], f"{name}.gelu.product")
    return b.node("Mul", [product, b.constant("half", np.array(0.5, dtype=np.float32))], f"{name}.gelu")


def _pool(b: _Builder, states: str) -> None:
    last = b.constant("axis.last", np.array([2], dtype=np.int64))
    tokens = b.constant("axis.tokens", np.array([1], dtype=np.int64))
    wide = b.node("Unsqueeze", ["mask.float", last], "pool.mask")
    kept = b.node("Mul", [states, wide], "pool.kept")
    # The mean only differs from the sum by a factor, which the scaling to length one takes away.
    summed = b.node("ReduceSum", [kept, tokens], "pool.sum", keepdims=0)
    norm = b.node("ReduceL2", [summed], "pool.norm", axes=[1], keepdims=1)
    b.node("Div", [summed, norm], "embedding")
