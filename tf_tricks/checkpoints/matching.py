"""Find the place of saved arrays in another model by the names of its layers: names in, pairs out."""

import fnmatch
import re

_NUMBER = re.compile(r"_\d+$")


def pair(ours, theirs, roots=(None, None), automatic=()):
    """Pair the paths of two models by layer and variable name.

    Names that the user chose must be equal. Names that Keras makes up ("dense", "dense_3") depend on what was built
    before in the process: where a model's are not all in the file, those of one kind are paired in their order.

    Args:
        ours, theirs: lists of paths such as "backbone/dense_1/kernel", in the order of the variables.
        roots: names of the two models, which come first in some paths.
        automatic: names that Keras makes up, without their numbers.
    Returns:
        Dict from the paths of `ours` that have a partner to those of `theirs`.
    Example:
        >>> pair(["dense_2/kernel", "head/kernel"], ["dense/kernel", "tail/kernel"], automatic={"dense"})
        {'dense_2/kernel': 'dense/kernel'}
    """
    found = {}
    _pair(_tree(ours, roots[0]), _tree(theirs, roots[1]), frozenset(automatic), found)
    return {path: found[path] for path in ours if path in found}


def layers(path, root=None):
    """The names in a path without the model's and the variable's own, outermost first."""
    names = path.split("/")[:-1]
    return names[1:] if names and names[0] == root else names


def automatic_name(cls):
    """The name, without a number, that Keras gives to an instance of the class with this name.

    Example:
        >>> automatic_name("BatchNormalization"), automatic_name("Conv2D")
        ('batch_normalization', 'conv2d')
    """
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(?<=.)([A-Z][a-z]+)", r"_\1", cls)).lower()


def select(paths, patterns, root=None):
    """The paths that are in a layer whose name fits one of the patterns (`fnmatch`).

    Raises:
        ValueError: a pattern fits no layer.
    Example:
        >>> select(["conv/kernel", "block/conv_1/bias", "dense/kernel"], ["conv*"])
        ['conv/kernel', 'block/conv_1/bias']
    """
    names = {path: _candidates(layers(path, root)) for path in paths}
    for pattern in patterns:
        if not any(fnmatch.filter(candidates, pattern) for candidates in names.values()):
            known = ", ".join(dict.fromkeys(name for path in paths for name in layers(path, root)))
            raise ValueError(f"`partial` must name layers of the model, which has {known}. Received: {pattern!r}")
    return [path for path in paths if any(fnmatch.filter(names[path], pattern) for pattern in patterns)]


def _candidates(names):
    """Each name by itself, and each with those around it: "block", "conv", "block/conv"."""
    return [*names, *("/".join(names[:end]) for end in range(2, len(names) + 1))]


def _tree(paths, root):
    tree = {}
    for path in paths:
        node = tree
        for name in layers(path, root):
            node = node.setdefault((name, "layer"), {})
        node[(path.rpartition("/")[2], "variable")] = path
    return tree


def _pair(ours, theirs, automatic, found):
    for key, partner in _partners(list(ours), list(theirs), automatic):
        if key[1] == "layer":
            _pair(ours[key], theirs[partner], automatic, found)
        else:
            found[ours[key]] = theirs[partner]


def _partners(ours, theirs, automatic):
    kinds = {}
    for side, keys in enumerate((ours, theirs)):
        for key in keys:
            kinds.setdefault((_NUMBER.sub("", key[0]), key[1]), ([], []))[side].append(key)
    for (name, kind), (mine, yours) in kinds.items():
        if kind == "layer" and name in automatic and not set(mine) <= set(yours):
            yield from zip(mine, yours, strict=False)
        else:
            yield from ((key, key) for key in mine if key in yours)
