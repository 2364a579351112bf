"""What a call means, as data, and who offers it.

It hands out the options of attention and where libraries differ (`options`), the parameter names of
libraries (`signature_styles`), what a signature says (`signatures`), `Implementation` and its decorator (`declaration`), the
operations (`operations`), array frameworks (`frameworks`), and how implementations are found (`registry`).
"""

from __future__ import annotations

from qkverify.contract.declaration import NAME as NAME
from qkverify.contract.declaration import REGISTERED as REGISTERED
from qkverify.contract.declaration import Function as Function
from qkverify.contract.declaration import Implementation as Implementation
from qkverify.contract.declaration import describe as describe
from qkverify.contract.declaration import implementation as implementation
from qkverify.contract.declaration import part_of as part_of
from qkverify.contract.declaration import with_defaults as with_defaults
from qkverify.contract.modules_used import FRAMEWORKS as FRAMEWORKS
from qkverify.contract.options import ATTENTIONS as ATTENTIONS
from qkverify.contract.options import DEVICES as DEVICES
from qkverify.contract.options import DTYPES as DTYPES
from qkverify.contract.options import EVERY_KEY as EVERY_KEY
from qkverify.contract.options import FURTHER as FURTHER
from qkverify.contract.options import OPERATIONS as OPERATIONS
from qkverify.contract.options import OPTIONS as OPTIONS
from qkverify.contract.options import SEMANTICS as SEMANTICS
from qkverify.contract.options import SLOW as SLOW
from qkverify.contract.options import STANDARD_SCALE as STANDARD_SCALE
from qkverify.contract.options import Finding as Finding
from qkverify.contract.signature_styles import SIGNATURE_STYLES as SIGNATURE_STYLES
from qkverify.contract.signature_styles import SPELLINGS as SPELLINGS
from qkverify.contract.signature_styles import SignatureStyle as SignatureStyle
from qkverify.contract.signature_styles import options_of as options_of
from qkverify.contract.signature_styles import signature_style_of as signature_style_of
from qkverify.contract.signatures import compiled as compiled
from qkverify.contract.signatures import default_dtypes as default_dtypes
from qkverify.contract.signatures import framework_of as framework_of
from qkverify.contract.signatures import letters as letters
from qkverify.contract.signatures import open_parameters as open_parameters
from qkverify.contract.signatures import operation_of as operation_of
from qkverify.contract.signatures import parameter_names as parameter_names
from qkverify.contract.signatures import parameters_of as parameters_of
from qkverify.contract.signatures import unknown_among as unknown_among
