"""How a callback reaches into `fit`: gradients, batches, the learning rate, the position.

The only room that may touch what Keras does not document. Each module lists what it touches in `PRIVATE_ATTRIBUTES`.
"""

from tf_tricks.fit_hooks.gradients import innermost
from tf_tricks.fit_hooks.hook import FitHook, Incident, Position, attach, require_optimizer

__all__ = ["FitHook", "Incident", "Position", "attach", "innermost", "require_optimizer"]
