"""Evaluates decoder graphs in float64, one operator at a time, by the operators' definitions.

Every operator is the sentence in its specification (ONNX operator schemas; ContribOperators.md of
onnxruntime for `com.microsoft`; the passes of amd/Quark `onnx_utils` for `com.ryzenai`), without
caches: one sequence from its beginning. Float constants keep the values that the file has; sums are
float64. This is the truth that the importer is held to.
"""

import numpy as np
import onnx
from onnx import numpy_helper


def nibbles(packed):
    """Unpacks bytes along the last axis, low nibble first."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)


def blocks_to_floats(codes, scales, zeros, rows, cols, bits, block):
    """(rows, cols) floats from MatMulNBits' codes, scales and zero points."""
    groups = -(-cols // block)
    codes = codes.reshape(rows, -1)
    codes = nibbles(codes) if bits == 4 else codes
    codes = codes.reshape(rows, groups, block).astype(np.float64)
    if zeros is None:
        zeros = np.full((rows, groups), 2.0 ** (bits - 1))
    elif zeros.dtype == np.uint8:
        zeros = zeros.reshape(rows, -1)
        zeros = nibbles(zeros)[:, :groups] if bits == 4 else zeros
    zeros = zeros.reshape(rows, groups, 1).astype(np.float64)
    floats = (codes - zeros) * scales.reshape(rows, groups, 1)
    return floats.reshape(rows, -1)[:, :cols]


def rms_norm(x, gain, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def rotate(x, positions, cos, sin, interleaved):
    """x: (batch, heads, tokens, head); the first 2 * width(cos) elements of a head are rotated."""
    half = cos.shape[1]
    cos, sin = cos[positions][:, None], sin[positions][:, None]
    out = x.copy()
    if interleaved:
        a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        out[..., 0 : 2 * half : 2] = a * cos - b * sin
        out[..., 1 : 2 * half : 2] = b * cos + a * sin
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
        out[..., :half], out[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
    return out


def heads_of(x, count):
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, count, width // count).transpose(0, 2, 1, 3)


class Evaluator:
    """A graph and the values of its names. `window`: an attention window for every layer."""

    def __init__(self, path, window=None):
        self.model = onnx.load(path)
        self.window = window

    def logits(self, tokens):
        """(tokens, vocab) logits of one sequence; every row even where the graph prunes them."""
        ids = np.array([tokens], dtype=np.int64)
        values = {"": None, "input_ids": ids, "attention_mask": np.ones_like(ids)}
        values["position_ids"] = np.arange(len(tokens), dtype=np.int64)[None]
        for graph_input in self.model.graph.input:
            values.setdefault(graph_input.name, None)
        self.run(self.model.graph, values)
        return values["logits"][0]

    def run(self, graph, values):
        for tensor in graph.initializer:
            values[tensor.name] = self.constant(tensor)
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            op = getattr(self, "op_" + node.op_type)
            inputs = [values[name] for name in node.input]
            self.values = values
            out = op(*inputs, **attributes)
            out = out if isinstance(out, (list, tuple)) else [out]
            values.update(zip(node.output, out))

    @staticmethod
    def constant(tensor):
        array = numpy_helper.to_array(tensor)
        if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
            return array.astype(np.int64)
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        return array.astype(np.float64) if tensor.data_type in floats else array

    # ai.onnx

    def op_Constant(self, value):
        return self.constant(value)

    def op_Shape(self, x):
        return np.array(x.shape, dtype=np.int64)

    def op_Cast(self, x, to, **_):
        return x.astype(np.int64) if x.dtype == bool else x

    def op_Gather(self, x, index, axis=0):
        if axis == 1 and np.ndim(index) == 0 and x.dtype == np.float64:
            return x  # prune_lm_head: the test wants the logits of every token
        return np.take(x, index, axis=axis)

    def op_Unsqueeze(self, x, axes):
        return x  # only after the Gather above

    def op_ReduceSum(self, x, axes, keepdims=1):
        return x.sum(axis=tuple(axes), keepdims=bool(keepdims))

    def op_ReduceMax(self, x, keepdims=1, **_):
        return x.max(keepdims=bool(keepdims))

    def op_Add(self, a, b):
        return a + b

    def op_Sub(self, a, b):
        return a - b

    def op_Mul(self, a, b):
        return a * b

    def op_Sigmoid(self, x):
        return 1 / (1 + np.exp(-x))

    def op_Greater(self, a, b):
        return np.greater(a, b)

    def op_GreaterOrEqual(self, a, b):
        return np.greater_equal(a, b)

    def op_If(self, condition, then_branch, else_branch):
        branch = then_branch if np.all(condition) else else_branch
        values = dict(self.values)
        self.run(branch, values)
        return [values[output.name] for output in branch.output]

    def op_Transpose(self, x, perm):
        return x.transpose(perm)

    def op_Reshape(self, x, shape):
        shape = [x.shape[i] if s == 0 else s for i, s in enumerate(shape)]
        return x.reshape(shape)

    def op_Split(self, x, sizes=None, axis=0, num_outputs=None):
        if sizes is None:
            return np.split(x, num_outputs, axis=axis)
        return np.split(x, np.cumsum(sizes)[:-1], axis=axis)

    def op_MatMul(self, a, b):
        return a @ b

    def op_DequantizeLinear(self, x, scales, zeros=None, axis=1, block_size=0):
        repeat = lambda t: np.repeat(t, block_size, axis=axis)[: x.shape[0]]
        return (x - (0 if zeros is None else repeat(zeros))) * repeat(scales)

    def op_SimplifiedLayerNormalization(self, x, gain, epsilon=1e-5, **_):
        return rms_norm(x, gain, epsilon)

    # com.microsoft

    def op_SkipSimplifiedLayerNormalization(self, x, skip, gain, epsilon=1e-5, **_):
        total = x + skip
        return [rms_norm(total, gain, epsilon), None, None, total]

    def op_MatMulNBits(self, x, codes, scales, zeros=None, *rest, K, N, bits, block_size, **_):
        # Group indices and AMD's packed weights are integers.
        floats = [t for t in rest if t is not None and t.dtype == np.float64]
        bias = floats[0] if floats else 0
        return x @ blocks_to_floats(codes, scales, zeros, N, K, bits, block_size).T + bias

    def op_GatherBlockQuantized(self, table, ids, scales, zeros=None, *, bits=4, block_size, **_):
        cols = table.shape[1] * 8 // bits
        floats = blocks_to_floats(table, scales, zeros, table.shape[0], cols, bits, block_size)
        return floats[ids]

    def op_RotaryEmbedding(self, x, positions, cos, sin, interleaved=0, **_):
        heads = self.heads_for_rotation(x, cos)
        rotated = rotate(heads_of(x, heads), positions, cos, sin, interleaved)
        return rotated.transpose(0, 2, 1, 3).reshape(x.shape)

    @staticmethod
    def heads_for_rotation(x, cos):
        return x.shape[-1] // (2 * cos.shape[1])

    def op_GroupQueryAttention(
        self, q, k, v, _pk, _pv, _lens, _total, cos=None, sin=None, *_,
        num_heads, kv_num_heads, scale=0.0, local_window_size=-1, softcap=0.0,
        do_rotary=0, rotary_interleaved=0, **__,
    ):  # fmt: skip
        if k is None:
            head = q.shape[-1] // (num_heads + 2 * kv_num_heads)
            q, k, v = np.split(q, [num_heads * head, (num_heads + kv_num_heads) * head], axis=-1)
        q, k, v = heads_of(q, num_heads), heads_of(k, kv_num_heads), heads_of(v, kv_num_heads)
        tokens, head = q.shape[2:]
        if do_rotary:
            positions = np.arange(tokens)[None]
            q = rotate(q, positions, cos, sin, rotary_interleaved)
            k = rotate(k, positions, cos, sin, rotary_interleaved)
        k, v = (np.repeat(t, num_heads // kv_num_heads, axis=1) for t in (k, v))
        scores = q @ k.transpose(0, 1, 3, 2) * (scale or head**-0.5)
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        row, col = np.ogrid[:tokens, :tokens]
        seen = col <= row
        for window in (local_window_size, self.window):
            if window and window > 0:
                seen &= col > row - window
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = weights / weights.sum(axis=-1, keepdims=True) @ v
        return [out.transpose(0, 2, 1, 3).reshape(1, tokens, -1), None, None]

    # com.ryzenai

    def op_SSMLP(self, x, skip, gain, *rest, epsilon, **attributes):
        total = x + skip
        normed = rms_norm(total, gain, epsilon)

        def project(name, value, at):
            form = {key: attributes[f"{name}_{key}"] for key in ("K", "N", "bits", "block_size")}
            return self.op_MatMulNBits(value, *rest[at : at + 3], **form)

        gate, up = project("gate", normed, 0), project("up", normed, 3)
        total = total + project("down", gate * self.op_Sigmoid(gate) * up, 6)
        return [rms_norm(total, rest[9], epsilon), total]

    def op_GQO(self, *inputs, **attributes):
        form = {key: attributes[f"o_proj_{key}"] for key in ("K", "N", "bits", "block_size")}
        attended = self.op_GroupQueryAttention(*inputs[:9], **attributes)[0]
        return [None, None, self.op_MatMulNBits(attended, *inputs[12:15], None, inputs[15], **form)]
