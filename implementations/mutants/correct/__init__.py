"""Attention that is right, in steps. A mutant is one of these with one step exchanged."""
