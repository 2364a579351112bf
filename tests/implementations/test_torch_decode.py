"""One new token against a cache: keys that query heads share go to torch once."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from qkverify.implementations import torch_decode  # noqa: E402


@pytest.mark.parametrize("queries", [1, 2])
def test_heads_of_one_token_are_rows_of_the_head_that_they_share(
    queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several tokens each row has a mask of its own, which would be repeated instead."""
    taken, right = [], torch_decode.scaled_dot_product_attention

    def recorded(query: Any, key: Any, value: Any, **options: Any) -> Any:
        taken.append((tuple(query.shape), options.get("enable_gqa", False)))
        return right(query, key, value, **options)

    monkeypatch.setattr(torch_decode, "scaled_dot_product_attention", recorded)
    query, key, value = torch.randn(2, 6, queries, 4), torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 5)
    place = torch.tensor([[4], [7]]) + torch.arange(queries)
    output = torch_decode.seeing_up_to(query, key, value, place, None)
    assert taken == [((2, 3, 2, 4), False) if queries == 1 else ((2, 6, 2, 4), True)]
    assert output.shape == (2, 6, queries, 5)
    alone = torch_decode.seeing_up_to(
        query[:, 3:4], key[:, 1:2], value[:, 1:2], place, None
    )  # head 3 reads key head 1
    torch.testing.assert_close(output[:, 3:4], alone)
