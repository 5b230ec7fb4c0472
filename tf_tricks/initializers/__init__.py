"""One family of initial weights per file."""

from tf_tricks.initializers.activation_scaling import ActivationScaling
from tf_tricks.initializers.delta_orthogonal import DeltaOrthogonal
from tf_tricks.initializers.dirac import Dirac
from tf_tricks.initializers.icnr import ICNR
from tf_tricks.initializers.lsuv import lsuv
from tf_tricks.initializers.prior_bias import PriorBias
from tf_tricks.initializers.zero_init_residual import zero_init_residual

__all__ = ["ICNR", "ActivationScaling", "DeltaOrthogonal", "Dirac", "PriorBias", "lsuv", "zero_init_residual"]
