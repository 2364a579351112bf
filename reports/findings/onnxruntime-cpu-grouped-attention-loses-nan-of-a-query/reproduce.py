"""onnxruntime's CPU GroupQueryAttention turns NaN in a query into zeros, but for the last query. Needs onnxruntime and onnx.

`attention` is the operator as qkverify calls attention: `qkverify verify reproduce.py:attention --dtype float32`.
"""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper


def attention(query, key, value, *, causal=False, scale=None, softcap=None):
    """Causal attention, aligned bottom-right: query (B,H,Q,D), key and value (B,G,K,.), the first K - Q keys from the cache."""
    (batch, heads, queries, size), (groups, keys), wide = query.shape, key.shape[1:3], value.shape[3]
    if not causal or 0 in (batch, heads, queries, size, wide) or not queries <= keys or scale == 0:
        raise NotImplementedError(
            "always causal, not empty, as many keys as queries, and a scale of 0 is the default"
        )
    if batch > 1 and 1 < queries < keys:
        raise NotImplementedError("several queries after a cache are taken of one entry only")
    room = -(-max(size, wide) // 8) * 8  # of a head: what is missing is filled with zeros
    query, key, value = (np.pad(x, [(0, 0)] * 3 + [(0, room - x.shape[3])]) for x in (query, key, value))
    past = keys - queries
    given = {
        "query": flat(query), "key": flat(key[:, :, past:]), "value": flat(value[:, :, past:]),
        "past_key": key[:, :, :past], "past_value": value[:, :, :past],
        "last": np.full(batch, keys - 1, np.int32), "total": np.array(keys, np.int32),
    }  # fmt: skip
    attributes = {
        "num_heads": heads,
        "kv_num_heads": groups,
        "scale": float(size**-0.5 if scale is None else scale),
    }
    output = called(given, attributes | ({} if softcap is None else {"softcap": float(softcap)}))
    return output.reshape(batch, queries, heads, room).swapaxes(1, 2)[..., :wide].astype(query.dtype)


def flat(x):
    """(B,H,L,D) as the operator takes it: (B,L,H*D)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def called(given, attributes):
    """The first output of a model that is this operator alone."""
    types = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    inputs = [helper.make_tensor_value_info(n, types[x.dtype.name], x.shape) for n, x in given.items()]
    names = ["output", "keys", "values"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    node = helper.make_node("GroupQueryAttention", list(given), names, domain="com.microsoft", **attributes)
    graph = helper.make_graph([node], "attention", inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {name: np.ascontiguousarray(x) for name, x in given.items()})[0]


def textbook(query, key, value):
    """softmax(Q K^T / sqrt(D)) V of one head in float64, the future hidden."""
    query, key, value = (x[0, 0].astype(float) for x in (query, key, value))
    scores = query @ key.T / query.shape[1] ** 0.5
    scores[np.triu(np.ones(scores.shape, bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ value


def main():
    print(f"onnxruntime {onnxruntime.__version__}: four queries, four keys, values of 1; one query is NaN")
    for broken in range(4):
        query, key, value = (np.full((1, 1, 4, 8), x, np.float32) for x in (0, 0, 1))
        query[0, 0, broken] = np.nan
        rows = {
            "exact": textbook(query, key, value),
            "GroupQueryAttention": attention(query, key, value, causal=True)[0, 0],
            "with a softcap of 50": attention(query, key, value, causal=True, softcap=50.0)[0, 0],
        }
        print(f"query {broken}")
        for name, found in rows.items():
            print(f"  {name:20} {found[:, 0]}")


if __name__ == "__main__":
    main()
