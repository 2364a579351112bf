"""torch's flex_attention loses the log-sum-exp of a row whose scores are the lowest number. Needs torch only."""

import warnings

import torch
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

warnings.filterwarnings("ignore", "flex_attention called without torch.compile")


def main():
    zero, value = torch.zeros(1, 1, 1, 1), torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1)
    print(f"torch {torch.__version__}: one query, two keys, values 1 and 3, all scores the same")
    print(f"{'score':>12} {'output':>7} {'log-sum-exp':>13} {'torch.logsumexp':>16}")
    for score in (0.0, -1e38, -2e38, -3e38, torch.finfo(torch.float32).min):
        output, aux = flex_attention(
            zero, torch.zeros_like(value), value, score_mod=lambda one, b, h, q, k: one + score,  # noqa: B023
            return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        exact = torch.logsumexp(torch.full((2,), score), 0)
        print(f"{score:12.4g} {output.item():7g} {aux.lse.item():13.5g} {exact.item():16.5g}")


if __name__ == "__main__":
    main()
