"""What is exact of the gradients of RMS norm."""

from __future__ import annotations

from qkverify.runs.exact_norms import gradients as gradients
