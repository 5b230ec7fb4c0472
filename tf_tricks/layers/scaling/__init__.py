"""Layers that scale the inputs of a model; their constants come from `adapt`, or from statistics made elsewhere."""

from tf_tricks.layers.scaling.auto_scale import AutoScale
from tf_tricks.layers.scaling.match_check import MatchCheck
from tf_tricks.layers.scaling.min_max_scale import MinMaxScale
from tf_tricks.layers.scaling.quantile_scale import QuantileScale
from tf_tricks.layers.scaling.robust_scale import RobustScale
from tf_tricks.layers.scaling.signed_log_scale import SignedLogScale
from tf_tricks.layers.scaling.standardize import Standardize
from tf_tricks.layers.scaling.tanh_scale import TanhScale
from tf_tricks.layers.scaling.whiten import Whiten

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
