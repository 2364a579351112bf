"""Classes and instances of torch.nn.Module as targets: how they are built, where their weights are, how they are called.

`ModuleTarget` is what a user named. Its constructor's arguments are guessed from their names (`argument_roles`, `constructor`),
its parameters from names and shapes (`weight_names`, `weights`), its call from the signature of `forward` (`calling`). What these
leave open, `probes.modules` finds out by calls. Each kind of module is then a function of its operation's arguments, one file
each, which puts them into the module by `torch.func.functional_call`, so that gradients reach them.

Importing this package loads no torch.
"""

from __future__ import annotations

from qkverify.contract.modules.other_kinds import refusal as refusal
from qkverify.contract.modules.target import ModuleTarget as ModuleTarget
from qkverify.contract.modules.target import adapted as adapted
from qkverify.contract.modules.target import described as described
from qkverify.contract.modules.target import is_module as is_module
from qkverify.contract.modules.target import module as module
