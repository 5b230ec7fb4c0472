"""In which order a model calls its layers, and which of them make its outputs."""

import functools

import keras

from tf_tricks import _layer_calls


class UnknownOrder(ValueError):
    """Which of a model's layers come first, or last, cannot be found out."""


class Traces:
    """What models do in which order; each is traced once at most, and only if nothing else tells."""

    def __init__(self):
        self._found = {}

    def layers(self, model):
        """The layers of a model, those first that it calls first; those that it does not call before them all."""
        if isinstance(model, keras.Sequential | keras.Function):
            return model.layers
        place = {}
        for operation, _, _ in self._calls(model)[0]:
            place.setdefault(id(operation), len(place))
        return sorted(model.layers, key=lambda layer: place.get(id(layer), -1))

    def ends(self, model, has_weights):
        """The layers for which `has_weights` that are the last ones on the way to each output.

        With them the other such layers before these, as far as is known.
        """
        if isinstance(model, keras.Sequential):
            last = [layer for layer in model.layers if has_weights(layer)][-1:]
            return last, []
        if isinstance(model, keras.Function):
            found = _ends(_graph(model), model.outputs, has_weights)
            if found is not None:
                return found
        calls, outputs = self._calls(model)
        own = {id(layer) for layer in model.layers}
        calls = [call for call in calls if id(call[0]) in own or not isinstance(call[0], keras.layers.Layer)]
        found = _ends(calls, outputs, has_weights)
        if found is not None:
            return found
        # An operation of the backend hides who made the output; what was called last did.
        called = [layer for layer, _, _ in calls if id(layer) in own and has_weights(layer)]
        if len(outputs) != 1 or not called:
            raise UnknownOrder(f"which layers make the outputs of `{model.name}` cannot be found out")
        return called[-1:], []

    def _calls(self, model):
        if id(model) not in self._found:
            self._found[id(model)] = _traced(model)
        return self._found[id(model)]


def _graph(model):
    """As `_layer_calls.traced`, of a functional model, whose graph tells without a trace."""
    found = []
    for operation in model.operations:
        try:
            # Of a model inside the model, what it was called with; its own `input` and `output` are those inside of it.
            ends = [keras.Operation.input.fget(operation), keras.Operation.output.fget(operation)]
        except (AttributeError, ValueError):  # part of no graph
            continue
        found.append((operation, *map(keras.tree.flatten, ends)))
    return found


def _ends(calls, outputs, has_weights):
    """(layers last on the way to each output, such layers before them); None if the way back breaks off."""
    makers = {}
    for operation, inputs, made in calls:
        passed_on = {id(tensor) for tensor in inputs}
        makers.update({id(tensor): (operation, inputs) for tensor in made if id(tensor) not in passed_on})
    ends, waiting, seen = {}, list(outputs), set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, inputs = makers.get(id(tensor), (None, ()))
        if operation is None:
            return None
        if _is_layer_with(has_weights, operation):
            ends[id(operation)] = (operation, inputs)
        elif not isinstance(operation, keras.layers.InputLayer):
            waiting += inputs
    if not ends:
        return None
    waiting, before, seen = [tensor for _, inputs in ends.values() for tensor in inputs], {}, set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            operation, inputs = makers.get(id(tensor), (None, ()))
            if _is_layer_with(has_weights, operation):
                before[id(operation)] = operation
            waiting += inputs
    return [operation for operation, _ in ends.values()], list(before.values())


def _is_layer_with(has_weights, operation):
    return isinstance(operation, keras.layers.Layer) and has_weights(operation)


def _traced(model):
    """(calls as of `_layer_calls.traced`, outputs) of a model, run on the shapes that it was built with."""
    made = []

    def run(*args, **kwargs):
        made.append(model(*args, **kwargs))
        return made[-1]

    for dtype in (keras.config.floatx(), "int32"):
        try:
            args, kwargs = _specifications(model, dtype)
            calls = _layer_calls.traced(functools.partial(_Run(run).compute_output_spec, *args, **kwargs))
        except Exception:  # whatever the user's `call` may raise for data that are not the user's
            continue
        return calls, keras.tree.flatten(made[-1])
    raise UnknownOrder(f"in which order `{model.name}` calls its layers cannot be found out")


class _Run(keras.layers.Layer):
    """Lets Keras run a function on tensors without values, as it does to build a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def _specifications(model, dtype):
    """(args, kwargs) for a call of the model, symbols of the shapes that it was built with."""
    if isinstance(model, keras.Function):
        return [keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype), model.input)], {}
    config = model.get_build_config()
    if "input_shape" in config:
        return [keras.tree.map_shape_structure(lambda s: keras.KerasTensor(s, dtype), config["input_shape"])], {}
    shapes = {name.removesuffix("_shape"): shape for name, shape in config["shapes_dict"].items()}
    return [], {
        name: keras.tree.map_shape_structure(lambda s: keras.KerasTensor(s, dtype), shape)
        for name, shape in shapes.items()
    }
