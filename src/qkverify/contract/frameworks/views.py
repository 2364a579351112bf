"""NumPy arrays that are views of others."""

from __future__ import annotations

import numpy as np


def owner_of(view: np.ndarray) -> np.ndarray:
    """The array whose memory a view shows; the view itself if it has its own.

    Windows (`numpy.lib.stride_tricks`) name theirs through an object that is no array.
    """
    owner, base = view, view.base
    while base is not None:
        owner = base if isinstance(base, np.ndarray) else owner
        base = getattr(base, "base", None)
    return owner
