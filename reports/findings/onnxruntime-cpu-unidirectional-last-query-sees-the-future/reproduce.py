"""onnxruntime's CPU MultiHeadAttention hides the future from every query but the last. Needs onnxruntime and onnx.

`attention` is the operator as qkverify calls attention: `qkverify verify reproduce.py:attention --dtype float32`.
"""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper


def attention(query, key, value, *, causal=False, scale=None):
    """query (B,H,Q,D), key and value (B,H,K,.)."""
    (batch, heads, queries, _), (groups, keys), wide = query.shape, key.shape[1:3], value.shape[3]
    if groups != heads or 0 in (*query.shape, keys, wide) or scale == 0:
        raise NotImplementedError("one key head a query head, not empty, and a scale of 0 is the default")
    given = {name: flat(x) for name, x in (("query", query), ("key", key), ("value", value))}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in given.items()]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    attributes = {"num_heads": heads, "unidirectional": int(causal)}
    attributes |= {} if scale is None else {"scale": float(scale)}
    node = helper.make_node(
        "MultiHeadAttention", list(given), ["output"], domain="com.microsoft", **attributes
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", inputs, [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, given)[0]
    return found.reshape(batch, queries, heads, wide).swapaxes(1, 2)


def flat(x):
    """(B,H,L,D) as the operator takes it: (B,L,H*D)."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)


def weights(queries, keys):
    """The weights (queries, keys) of one head: all scores are zero, and the values are the identity."""
    query, key = (np.zeros((1, 1, length, 1), np.float32) for length in (queries, keys))
    return attention(query, key, np.eye(keys, dtype=np.float32)[None, None], causal=True)[0, 0].astype(float)


def main():
    print(
        f"onnxruntime {onnxruntime.__version__}, unidirectional = 1: the keys that each query sees, by their weights"
    )
    for queries, keys in ((3, 3), (3, 5)):
        rows = {"MultiHeadAttention": weights(queries, keys)}
        for start, later in (("first keys", 0), ("last keys", keys - queries)):
            seen = np.tri(queries, keys, later)
            rows[f"exact, aligned to the {start}"] = seen / seen.sum(1, keepdims=True)
        print(f"{queries} queries, {keys} keys")
        for name, found in rows.items():
            print(f"  {name:32} {found.round(2).tolist()}")


if __name__ == "__main__":
    main()
