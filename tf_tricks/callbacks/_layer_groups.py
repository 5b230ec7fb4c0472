"""Which layers belong to which stage of fine-tuning."""

import dataclasses
import fnmatch
import re

import keras

from tf_tricks.callbacks._layer_order import Traces, UnknownOrder
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
