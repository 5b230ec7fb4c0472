"""Functions that run an experiment on a model and return a result that prints and plots itself."""

from tf_tricks.debug.signal_propagation import SignalPropagation, signal_propagation

__all__ = ["SignalPropagation", "signal_propagation"]
