"""A function whose output is cut off from its inputs, as under `torch.no_grad`, gives no gradients: that is said once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qkverify.contract import Implementation
from qkverify.contract.registry import devices_of
from qkverify.probes.limits import plain_sizes
from qkverify.probes.plain import problem_of
from qkverify.runs.run import Run

REMARK = ("its output has no gradient (torch.no_grad, a detached array?), so gradients are not verified; declare "
          "differentiable=True to count this as a failure, differentiable=False if it is intended")  # fmt: skip

UNREGISTERED = "its operator has no registered gradient (register_autograd), so gradients are not verified"


def without_gradients(implementation: Implementation) -> Implementation:
    """The implementation without gradients if a plain call gives none, and nothing is declared of them."""
    undeclared = implementation.differentiable is None and implementation.vjp is None
    if not (undeclared and implementation.arrays == "torch" and "gradients" in implementation.offers):
        return implementation
    sizes = plain_sizes(implementation)
    device = next((device for device, reason in devices_of(implementation).items() if reason is None), None)
    if sizes is None or device is None:
        return implementation
    run = Run(implementation, device, implementation.dtypes[0])
    problem = problem_of(run, sizes, **dict.fromkeys(implementation.always, True))
    upstream = np.ones((*problem.query.shape[:3], problem.sizes["E"]), run.numpy_dtype)
    try:
        run.gradient_values(problem.replace(upstream=upstream))
    except RuntimeError as error:
        said = REMARK if "does not require grad" in str(error) else ""
        if "no autograd formula was registered" in str(error):
            said = UNREGISTERED
        if said:
            offers = implementation.offers - {"gradients", "lse_gradient"}
            return replace(implementation, offers=offers, remarks=(*implementation.remarks, said))
    except Exception:  # the law that meets the same error reports it
        return implementation
    return implementation
