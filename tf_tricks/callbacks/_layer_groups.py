"""Which layers belong to which stage of fine-tuning."""

import dataclasses
import fnmatch
import functools
import re

import keras

from tf_tricks import _layer_calls
from tf_tricks.fit_hooks.replay_state import sublayers

# What the blocks of published networks are called: block5_conv1, conv5_block3_2_conv, block_16_expand, stage_3_block_2.
_BLOCK = re.compile(r"(.*?(?:block|stage|layer|encoder|decoder)s?_?\d+[a-z]?)(?=_|/|$)")


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """A layer that is frozen as a whole.

    Attributes:
        owners: tuple of the models that it lies in, from the outside, and the layer itself.
        variables: tuple of its trainable variables.
    """

    owners: tuple
    variables: tuple

    @property
    def path(self):
        """str, such as "resnet50/conv1_bn"; the outermost model is not named."""
        return "/".join(layer.name for layer in self.owners[1:]) or self.owners[0].name

    def layers(self):
        """The layer and all inside of it; of a model, none: what the model holds are units of their own."""
        own = self.owners[-1]
        if isinstance(own, keras.Model):
            return []
        found = sublayers(own)
        return [own] if any(isinstance(layer, keras.Model) for layer in found) else found

    def matches(self, entry):
        """Does a layer, or a pattern for its name or path or that of a model around it, mean this unit?"""
        if isinstance(entry, keras.layers.Layer):
            return any(layer is entry for layer in self.owners)
        names = [layer.name for layer in self.owners]
        paths = ["/".join(names[1:i]) for i in range(2, len(names) + 1)]
        return any(fnmatch.fnmatchcase(name, entry) for name in [*names, *paths])


def units(model, traces=None):
    """List of `Unit`s from the input to the output: the layers of the model and of the models inside it.

    Args:
        traces: a `Traces`, for a subclassed model, whose layers then come in the order in which it calls them; or
            None: they come as they were declared.
    Raises:
        UnknownOrder: that order cannot be found out.
    """
    found, taken = _units((model,), set(), traces), set()
    result = []
    trainable = {id(v) for v in model.trainable_variables}
    for owners, variables in found:
        new = tuple(v for v in variables if id(v) in trainable and id(v) not in taken)
        taken |= {id(v) for v in new}
        result.append(Unit(owners, new))
    return result


def _units(owners, seen, traces):
    found, inside = [], set()
    model = owners[-1]
    for layer in model.layers if traces is None else traces.layers(model):
        if id(layer) in seen:  # shared between several places
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.Model):
            found += _units((*owners, layer), seen, traces)
        else:
            found.append(((*owners, layer), layer.trainable_variables))
        inside |= {id(v) for v in layer.variables}
    own = [v for v in model.trainable_variables if id(v) not in inside]  # made by `add_weight` of the model itself
    return [(owners, own), *found] if own else found


# --- what a model does in which order ---------------------------------------------------------------------------------


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
    ends, waiting, complete = {}, list(outputs), True
    while waiting:
        operation, inputs = makers.get(id(waiting.pop()), (None, ()))
        if operation is None:
            complete = False
        elif _is_layer_with(has_weights, operation):
            ends[id(operation)] = (operation, inputs)
        elif not isinstance(operation, keras.layers.InputLayer):
            waiting += inputs
    if not complete or not ends:
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


# --- the head, and what is below it -----------------------------------------------------------------------------------


def head(model, found, traces=None):
    """Those of the units that make the outputs: what stands after the last model inside the model, or the last layers.

    A model inside the model that makes an output is the head, all of it, if it is not most of the model; otherwise its
    own head is. Of all other layers the last one with weights of each output is.

    Raises:
        UnknownOrder: the layers that make the outputs cannot be found out.
    """
    traces = Traces() if traces is None else traces
    with_variables = {id(owner) for unit in found if unit.variables for owner in unit.owners}

    def has_weights(layer):
        if isinstance(layer, keras.Model):
            return bool(_could_be_trained(layer))
        return id(layer) in with_variables

    try:
        ends, before = traces.ends(model, has_weights)
    except UnknownOrder:
        if not any(isinstance(layer, keras.Model) and has_weights(layer) for layer in traces.layers(model)):
            raise
        ends, before = [], []
    bases = [layer for layer in traces.layers(model) if isinstance(layer, keras.Model) and has_weights(layer)]
    bases = [layer for layer in bases if not _holds(ends, layer) or _holds(before, layer)]
    ends = [layer for layer in ends if not _holds(bases, layer)]
    if bases:
        last = max((i for i, unit in enumerate(found) if _holds(unit.owners, bases[-1])), default=-1)
        after = [unit for i, unit in enumerate(found) if i > last or any(_holds(unit.owners, end) for end in ends)]
        if any(unit.variables for unit in after):
            return [unit for unit in after if unit.variables]
    if not ends:
        raise UnknownOrder(f"which layers make the outputs of `{model.name}` cannot be found out")
    chosen = [unit for end in ends for unit in _of_end(end, ends, found, traces)]
    return [unit for unit in found if unit.variables and unit in chosen]


def _of_end(end, ends, found, traces):
    """The units of a last layer; of a model that is most of the whole, those of its own head."""
    own = [unit for unit in found if _holds(unit.owners, end)]
    if not isinstance(end, keras.Model):
        return own
    others = [unit for unit in found if not any(_holds(unit.owners, each) for each in ends)]
    count, count_others = (sum(bool(unit.owners[-1].weights) for unit in each) for each in (own, others))
    return own if count_others >= count else head(end, own, traces)


def _holds(layers, layer):
    return any(each is layer for each in layers)


def _could_be_trained(layer):
    # Of what the user froze Keras no longer tells which weights would be trained.
    return layer.trainable_variables if layer.trainable else layer.weights


def last_blocks(base, share):
    """The last `share` of the blocks that the units of the base form, at least one: neighbours with a common name.

    A block is what published networks call one ("block5_conv1" and "block5_conv2"); other layers are blocks alone.
    """
    blocks = []
    for unit in base:
        found = _BLOCK.match(unit.path)
        name = found.group(1) if found else None
        if name is None or not blocks or blocks[-1][0] != name:
            blocks.append((name, []))
        blocks[-1][1].append(unit)
    blocks = [members for _, members in blocks if any(unit.variables for unit in members)]
    count = max(1, round(share * len(blocks)))
    return [unit for members in blocks[-count:] for unit in members]


def last_share(found, share):
    """The units from the last back to that with which `share` of those with weights are reached, at least one."""
    with_weights = [i for i, unit in enumerate(found) if unit.variables]
    count = max(1, round(share * len(with_weights)))
    first = 0 if count >= len(with_weights) else with_weights[-count]
    return found[first:]


def is_batch_norm(layer):
    return isinstance(layer, keras.layers.BatchNormalization)
