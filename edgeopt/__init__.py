"""Certified placement of large generative models on unequal devices and slow links, checked against a real run."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
