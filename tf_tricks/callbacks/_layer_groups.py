"""Which layers belong to which stage of fine-tuning."""

import dataclasses
import fnmatch
import re

import keras

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


def units(model):
    """List of `Unit`s from the input to the output: the layers of the model and of the models inside it."""
    found, taken = _units((model,), set()), set()
    result = []
    trainable = {id(v) for v in model.trainable_variables}
    for owners, variables in found:
        new = tuple(v for v in variables if id(v) in trainable and id(v) not in taken)
        taken |= {id(v) for v in new}
        result.append(Unit(owners, new))
    return result


def _units(owners, seen):
    found, inside = [], set()
    model = owners[-1]
    for layer in model.layers:
        if id(layer) in seen:  # shared between several places
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.Model):
            found += _units((*owners, layer), seen)
        else:
            found.append(((*owners, layer), layer.trainable_variables))
        inside |= {id(v) for v in layer.variables}
    own = [v for v in model.trainable_variables if id(v) not in inside]  # made by `add_weight` of the model itself
    return [(owners, own), *found] if own else found


def head(model, found):
    """Those of the units that make the outputs: what stands after the last model inside the model, or the last layers.

    Of a functional model each output's last layer with weights, of any other the last layer with weights.
    """
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model) and _could_be_trained(layer)]
    if inner:
        last = max(i for i, unit in enumerate(found) if inner[-1] in unit.owners)
        after = [unit for unit in found[last + 1 :] if unit.variables]
        if after:
            return after
    with_weights = [unit for unit in found if unit.variables]
    by_layer = {id(unit.owners[-1]): unit for unit in with_weights}
    if not inner and (outputs := _output_layers(model, by_layer)):
        return [unit for unit in with_weights if id(unit.owners[-1]) in outputs]
    return with_weights[-1:]


def _could_be_trained(layer):
    # Of what the user froze Keras no longer tells which weights would be trained.
    return layer.trainable_variables if layer.trainable else layer.weights


def _output_layers(model, by_layer):
    """Ids of the last layers with weights on the way to each output; empty where there is no graph to follow."""
    producers = {}
    for layer in model.layers:
        try:
            producers.update({id(tensor): layer for tensor in keras.tree.flatten(layer.output)})
        except (AttributeError, ValueError):  # not part of a graph, or of several
            continue
    found = set()
    for tensor in getattr(model, "outputs", None) or ():
        layer = producers.get(id(tensor))
        while layer is not None and id(layer) not in by_layer:
            inputs = keras.tree.flatten(layer.input)
            layer = producers.get(id(inputs[0])) if inputs and layer.output is not inputs[0] else None
        if layer is None:
            return set()
        found.add(id(layer))
    return found


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
