"""Attribute classifiers on few dimensions of z (ProbMask, Zhou et al. 2021)."""

from __future__ import annotations
