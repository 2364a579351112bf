"""Each framework's own words for the same: numbers out of an array, and arrays in a memory layout."""

from __future__ import annotations

# The memory layouts of `problems.LAYOUTS` in each framework's own words; what lies around a view is NaN (or True).
AROUND = {
    "numpy": "np.full({shape}, True if x.dtype == bool else np.nan, x.dtype)",
    "torch": "torch.full({shape}, True if x.dtype == torch.bool else torch.nan, dtype=x.dtype, device=x.device)",
}
VIEWS = {
    "every second": ("(*x.shape[:-1], 2 * x.shape[-1])", "buffer[..., ::2]"),
    "slice of longer": ("(*x.shape[:-2], x.shape[-2] + 3, x.shape[-1] + 1)", "buffer[..., 1:-2, :-1]"),
    "rows far apart": ("(*x.shape[:-1], max(x.shape[-1], 2**17 // int(np.prod(x.shape[:-1]))))",
                       "buffer[..., : x.shape[-1]]"),
}  # fmt: skip
DIRECT = {
    ("heads after length", "numpy"): "np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)",
    ("heads after length", "torch"): "x.transpose(1, 2).contiguous().transpose(1, 2)",
    ("last axes swapped", "numpy"): "np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)",
    ("last axes swapped", "torch"): "x.transpose(-1, -2).contiguous().transpose(-1, -2)",
    ("backward", "numpy"): "np.flip(np.ascontiguousarray(np.flip(x)))",
    ("overlapping rows", "numpy"): "np.lib.stride_tricks.sliding_window_view("
                                   "np.concatenate([x[..., 0], x[..., -1, 1:]], -1), x.shape[-1], -1)",
    ("overlapping rows", "torch"): "torch.cat([x[..., 0], x[..., -1, 1:]], -1).unfold(-1, x.shape[-1], 1)",
    ("batch of stride zero", "numpy"): "np.broadcast_to(x[:1], x.shape)",
    ("batch of stride zero", "torch"): "x[:1].expand(x.shape)",
}  # fmt: skip
REORDERED = {"numpy": "np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))",
             "torch": "x.permute(axes).contiguous().permute(tuple(np.argsort(axes)))"}  # fmt: skip
NUMBERS = {"numpy": "np.asarray(x, np.float64)", "torch": "x.detach().cpu().double().numpy()",
           "jax": "np.asarray(x, np.float64)"}  # fmt: skip


def layout_lines(layout: str, framework: str) -> list[str]:
    """The body of a function that brings x into a layout."""
    if (layout, framework) in DIRECT:
        return [f"    return {DIRECT[layout, framework]}"]
    if layout == "offset":
        size = "x.size" if framework == "numpy" else "x.numel()"
        shape, view = f"({size} + 8,)", f"buffer[3 : 3 + {size}].reshape(x.shape)"
    else:
        shape, view = VIEWS[layout]
    return [f"    buffer = {AROUND[framework].format(shape=shape)}", f"    view = {view}", "    view[...] = x",
            "    return view"]  # fmt: skip
