"""Factorisation schemes, one file each; `base` says what a scheme is and holds the registry."""

from .base import FACTORISATIONS, Factorisation, Step, factor_shapes, factorisation

__all__ = ["FACTORISATIONS", "Factorisation", "Step", "factor_shapes", "factorisation"]
