"""Let each residual block begin as the identity."""

import dataclasses
import itertools
import typing

import keras
import numpy as np

from tf_tricks._checks import check_instance
from tf_tricks._text_table import text_table


class ZeroedScale(typing.NamedTuple):
    """One branch: the addition that it ends in, the layer and the variable set to zero; or why nothing was set."""

    addition: str
    layer: str
    variable: str
    note: str = ""


@dataclasses.dataclass
class ZeroedScales:
    """What `zero_init_residual` did; `print` shows it as a table.

    Attributes:
        rows: list of `ZeroedScale`s in the order of the model; `variable` is "" where nothing was set.
    """

    rows: list

    def __str__(self):
        return text_table(("addition", "layer", "set to zero", "note"), self.rows)


def zero_init_residual(model):
    """Set the last scale of each residual branch to zero: every block begins as the identity, the net as a shallow one.

    The last scale is the `gamma` of the normalisation that ends the branch, or else the last kernel of the layer that
    ends it (dense, convolution, attention); dropout, pooling and reshaping may come after it. Of the inputs of an
    addition (`keras.layers.Add` or `+`) a branch is each one that has more layers with weights, since they all parted,
    than the one with the fewest; an addition whose sides have equally many is not taken for a residual one. A branch
    that ends in an activation without a slope at zero (relu), or in a frozen scale, is left alone, because it would
    never learn: the table says so.

    Reads the graph of functional and sequential models, and of those inside them, from their public config; a branch
    may be such a model. What a subclassed layer does inside is not in there: use `gamma_initializer="zeros"` in it.

    Args:
        model: keras.Model made with the functional API, built.
    Returns:
        `ZeroedScales`; `print` it.
    Raises:
        TypeError: `model` is not a keras.Model.
        ValueError: the model has no graph, or none of its branches has a scale that can be set to zero.
    Reference:
        Goyal et al. (2017), Accurate, Large Minibatch SGD, arXiv:1706.02677, section 5.1; Zhang, Dauphin and Ma (2019),
        Fixup, arXiv:1901.09321, section 3.
    Example:
        >>> inputs = keras.Input((8,))
        >>> branch = keras.layers.Dense(8, name="last")(keras.layers.Dense(8, activation="relu")(inputs))
        >>> report = zero_init_residual(keras.Model(inputs, inputs + branch))
        >>> [row.variable for row in report.rows]
        ['last/kernel']
    """
    check_instance("model", model, keras.Model, "a keras.Model")
    rows = list(_branches(model))
    if not any(row.variable for row in rows):
        found = "; ".join(f"{row.addition}: {row.note}" for row in rows) or "no addition of a branch in its graph"
        raise ValueError(
            "`model` must be a functional model with a residual branch (an Add layer or `+`) that ends in a "
            f"normalisation or a kernel. Received: model={model.name!r} with {found}"
        )
    return ZeroedScales(rows)


def _branches(model):
    """Set the scales of `model` and of the models inside it; yields the rows."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _branches(layer)
    graph = Graph.of(model)
    for node in graph.additions():
        for branch in graph.branches(node):
            layer, variable, note = _end(graph, branch) or (branch[0], None, "no single scale at its end")
            if variable is not None:
                variable.assign(keras.ops.zeros_like(variable.value))
            yield ZeroedScale(node[0], layer, "" if variable is None else variable.path, note)


def _end(graph, node):
    """Walk back from `node` to the last scale: (name of the layer, variable or None, why there is none).

    None where the walk comes to the inputs of `graph`.
    """
    while True:
        name, layer = node[0], graph.layers.get(node[0])
        if isinstance(layer, keras.Model):
            inner = Graph.of(layer)
            found = None if inner.output is None else _end(inner, inner.output)
            if found is not None:
                return found
        variable = None if layer is None else last_scale(layer)
        activation = getattr(layer, "activation", None)
        if isinstance(layer, keras.layers.ReLU) or (callable(activation) and not passes_zero(activation)):
            return name, None, "ends in an activation without a slope at zero"
        if variable is not None and not variable.trainable:
            return name, None, "ends in a scale that is frozen"
        if variable is not None:
            return name, variable, ""
        if layer is not None and (layer.trainable_variables or (layer.weights and not layer.trainable)):
            return name, None, "has weights, but no gamma and no kernel at its end"
        sources = graph.inputs.get(node, ())
        if not sources:
            return None
        if len(sources) != 1:
            return name, None, "no single scale at its end"
        node = sources[0]


def last_scale(layer):
    """The variable whose zeros make the output of `layer` zero but for a bias, or None."""
    gamma = getattr(layer, "gamma", None)
    if isinstance(gamma, keras.Variable):
        return gamma
    if isinstance(layer, (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)):
        return [v for v in layer.weights if v.name == "kernel"][-1]  # projection of the output
    for name in ("pointwise_kernel", "kernel"):
        kernel = getattr(layer, name, None)
        if isinstance(kernel, keras.Variable) and not hasattr(layer, "recurrent_kernel"):
            return kernel
    return None


def passes_zero(activation):
    """Is the activation 0 at 0, with a slope on both sides?"""
    points = np.array([[-1e-3, 0.0, 1e-3]], "float32")
    try:
        below, at, above = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(points)))[0]
    except Exception:  # an activation that is not elementwise (glu) does not take, or not return, three numbers
        return False
    return at == 0 and min(abs(below), abs(above)) > 1e-5


@dataclasses.dataclass
class Graph:
    """Calls of a functional model; a node is (name of the layer or operation, number of its call).

    Attributes:
        inputs: dict from a node to the list of nodes whose outputs it gets.
        class_names: dict from the name of a layer or operation to that of its class.
        layers: dict from name to layer; operations such as `+` are not in it.
        output: the node of the only output, or None.
    """

    inputs: dict
    class_names: dict
    layers: dict
    output: tuple | None = None

    @classmethod
    def of(cls, model):
        """The graph in `model.get_config()`; an empty one for a model without."""
        if isinstance(model, keras.Sequential):
            return cls._chain(model.layers)
        inputs, class_names = {}, {}
        config = model.get_config() if getattr(model, "inputs", None) else {}
        for entry in config.get("layers", ()):
            class_names[entry.get("name")] = entry["class_name"]
            for number, call in enumerate(entry.get("inbound_nodes", ())):
                inputs[entry["name"], number] = list(_histories(call))
        layers = {layer.name: layer for layer in model.layers} if config else {}
        return cls(inputs, class_names, layers, _only_node(config.get("output_layers")))

    @classmethod
    def _chain(cls, layers):
        nodes = [(layer.name, 0) for layer in layers]
        inputs = {node: [before] for before, node in itertools.pairwise(nodes)}
        class_names = {layer.name: type(layer).__name__ for layer in layers}
        return cls(inputs, class_names, {layer.name: layer for layer in layers}, nodes[-1] if nodes else None)

    def additions(self):
        return [node for node, sources in self.inputs.items() if self._adds(node) and len(sources) > 1]

    def _adds(self, node):
        return self.class_names[node[0]] == "Add"

    def branches(self, addition):
        """The inputs of `addition` that went through more layers with weights, since all parted, than the shortest."""
        sources = self.inputs[addition]
        common = set.intersection(*(self._before(node) for node in sources))
        if not common:
            return []
        depths = [self._weighted_depth(node, common) for node in sources]
        return [node for node, depth in zip(sources, depths, strict=True) if depth > min(depths)]

    def _before(self, node):
        """`node` and all that its inputs depend on."""
        found, waiting = set(), [node]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting.extend(self.inputs.get(node, ()))
        return found

    def _weighted_depth(self, node, common):
        """Layers with kernels or scales on the longest way from `common` to `node`."""
        depths = {}
        waiting = [node]
        while waiting:
            at = waiting[-1]
            sources = [] if at in common else self.inputs.get(at, [])
            missing = [source for source in sources if source not in depths]
            if missing:
                waiting.extend(missing)
                continue
            waiting.pop()
            own = 0 if at in common else self._own_depth(at)
            depths[at] = own + max((depths[source] for source in sources), default=0)
        return depths[node]

    def _own_depth(self, node):
        layer = self.layers.get(node[0])
        inner = Graph.of(layer) if isinstance(layer, keras.Model) else None
        if inner is not None and inner.output is not None:
            return inner._weighted_depth(inner.output, ())
        return 0 if layer is None or not layer.trainable_variables else 1


def _only_node(output):
    """The node in the `output_layers` of a config, or None if there are several."""
    while isinstance(output, (list, tuple)) and output and not isinstance(output[0], str):
        output = output[0] if len(output) == 1 else None
    return tuple(output[:2]) if isinstance(output, (list, tuple)) and output else None


def _histories(structure):
    """The (name, number of the call) of each tensor in the config of a call."""
    if isinstance(structure, dict):
        if structure.get("class_name") == "__keras_tensor__":
            name, number, _ = structure["config"]["keras_history"]
            yield name, number
        else:
            for value in structure.values():
                yield from _histories(value)
    elif isinstance(structure, (list, tuple)):
        for value in structure:
            yield from _histories(value)
