"""Layers for the front of a model."""

from tf_tricks.layers.scaling import (
    AutoScale,
    MatchCheck,
    MinMaxScale,
    QuantileScale,
    RobustScale,
    SignedLogScale,
    Standardize,
    TanhScale,
    Whiten,
)

__all__ = [
    "AutoScale",
    "MatchCheck",
    "MinMaxScale",
    "QuantileScale",
    "RobustScale",
    "SignedLogScale",
    "Standardize",
    "TanhScale",
    "Whiten",
]
