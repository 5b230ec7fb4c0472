"""Switch off what keeps a borrowed model from fitting: regularisers, dropout, noise, augmentation, weight decay."""

from tf_tricks.fit_hooks import innermost
from tf_tricks.fit_hooks.replay import training_argument
from tf_tricks.fit_hooks.replay_state import sublayers

# Attributes that hold a strength, which layers (Keras's and most others) leave out of the computation when it is 0.
_STRENGTHS = ("rate", "stddev", "dropout", "recurrent_dropout", "dropout_rate", "drop_rate", "drop_prob")
_NOISY = ("drop", "noise", "stochasticdepth")
_AUGMENTING = ("random", "mixup", "cutmix", "augmix", "randaugment", "trivialaugment", "augmentation")


def switch_off_regularisation(loan):
    """Switch it all off until the loan ends; returns a list of str that names what was on."""
    found = []
    for layer in sublayers(loan.model):
        found += _dropout(layer) + _augmentation(layer) + _activity(layer)
    found += without_regularizers(loan.model)
    optimizer = innermost(loan.model.optimizer)
    if getattr(optimizer, "weight_decay", None):
        found.append(f"weight decay {float(optimizer.weight_decay):.3g}")
        optimizer.weight_decay = None
    if found:
        loan.forget_steps()
    return sorted(set(found))


def without_regularizers(model):
    """Those of the variables only: once more after each `reset` of the loan, which brings them back."""
    found = []
    for variable in model.trainable_variables:
        if variable.regularizer is not None:
            found.append(f"{type(variable.regularizer).__name__} of `{variable.path}`")
            variable.regularizer = None
    return found


def _dropout(layer):
    name, found = type(layer).__name__.lower(), []
    for attribute in _STRENGTHS:
        strength = vars(layer).get(attribute)
        # `rate` and `stddev` mean other things elsewhere; the others say what they are.
        is_noise = attribute not in ("rate", "stddev") or any(word in name for word in _NOISY)
        if is_noise and isinstance(strength, (int, float)) and strength > 0:
            setattr(layer, attribute, 0.0)
            found.append(f"{attribute} {strength:.3g} of `{layer.name}` ({type(layer).__name__})")
    return found


def _activity(layer):
    found = []
    if getattr(layer, "activity_regularizer", None) is not None:
        found.append(f"activity regulariser of `{layer.name}`")
        layer.activity_regularizer = None
    return found


def _augmentation(layer):
    """A layer that changes its input at random, and only in training, is called as in inference."""
    call = layer.call
    # Such a layer has no weights, and a seed at most.
    if not type(layer).__name__.lower().startswith(_AUGMENTING) or layer.weights or not training_argument(call):
        return []

    def as_in_inference(inputs, *args, training=False, **kwargs):
        return call(inputs, training=False, **kwargs)

    vars(layer)["call"] = as_in_inference
    return [f"`{layer.name}` ({type(layer).__name__})"]
