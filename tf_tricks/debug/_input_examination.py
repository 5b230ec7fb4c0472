"""Which checks apply to a set of data, and what they are given."""

import keras
import numpy as np

from tf_tricks.debug import _axes_order, _input_checks, _label_dependence, _target_checks
from tf_tricks.debug._input_probe import Probe, probe
from tf_tricks.debug._result import Finding

PROBED = 64  # samples that the model sees
INDEPENDENT = 0.01  # p-value above which the labels look shuffled


class Examination:
    """The checks of one set of data, in an order in which the dear ones come last."""

    def __init__(self, data, model, validation, seed):
        self.model, self.seed = model, seed
        self.num_samples, self.num_validation = data.size, validation.size if validation else 0
        self.raw, self.raw_validation = data, validation
        self.data, self.validation = _finite(data), validation and _finite(validation)
        self.findings, self.dependence, self.probe = [], None, Probe()

    def checks(self):
        """(name, function) of each check that applies."""
        found = [("finite values", self.finiteness)]
        if self.data.size < 2:
            return found
        found.append(("columns", self.columns))
        if self.model is not None:
            found.append(("the model's view", self.look))
        found += [("scale", self.scale), ("order of axes", self.axes)]
        if self.data.y is not None:
            found += [("targets", self.targets), ("equal samples", self.conflicts)]
        if self.validation is not None and self.validation.size:
            found.append(("validation", self.against_validation))
        if self.data.y is not None and self.data.size >= _label_dependence.FEWEST:
            found.append(("shuffled labels", self.shuffled))
        return found

    def result(self):
        """The attributes of an `InputCheck`, but for what was skipped."""
        arrays = [*named("x", self.raw.x), *named("y", self.raw.y)]
        shapes = {name: f"{_dims(a)} {a.dtype}" for name, a in arrays}
        points = {}
        for name, array in named("x", self.data.x):
            columns = _input_checks.columns_of(array[:2000])[:, :256] if array.size else np.zeros((0, 1))
            if len(columns):
                points[name] = np.percentile(columns, [0, 5, 50, 95, 100], axis=0)
        faults = sorted(self.findings, key=lambda finding: not finding.is_fault)
        return {
            "findings": faults,
            "num_samples": self.num_samples,
            "num_validation_samples": self.num_validation,
            "shapes": shapes,
            "dependence": self.dependence,
            "percentiles": points,
        }

    def finiteness(self):
        sets = [("x", self.raw.x), ("y", self.raw.y)]
        if self.raw_validation is not None:
            sets += [("validation x", self.raw_validation.x), ("validation y", self.raw_validation.y)]
        for label, structure in sets:
            for name, array in named(label, structure):
                self._add(_input_checks.not_finite(name, array))

    def columns(self):
        for name, array in named("x", self.data.x):
            self._add(_input_checks.constant_columns(name, array), _input_checks.duplicate_columns(name, array))

    def look(self):
        self.probe = probe(self.model, self.data.take(slice(PROBED)))
        if self.probe.error is not None:
            text = f"The model cannot be run on `x`: {self.probe.error}"
            self._add(Finding("does_not_fit", text, evidence={"error": self.probe.error}))

    def scale(self):
        for i, (name, array) in _numbered("x", self.data.x):
            layer, arriving = self.probe.arriving.get(i, (None, None))
            if layer is None and _are_tokens(array):
                continue
            self._add(_input_checks.not_scaled(name, array, arriving, layer))

    def axes(self):
        data_format = self.probe.data_format or keras.config.image_data_format()
        for name, array in named("x", self.data.x):
            if array.ndim == 4:
                few = array[:PROBED]
                swapped = _axes_order.channels_first(name, few, data_format, self.probe.data_format is not None)
                if not self._add(swapped):
                    self._add(_axes_order.scrambled(name, _channels_last(few, data_format)))
        for layer, pictures in self.probe.pictures:
            if self._named("axes_scrambled") or self._named("channels_first"):
                return
            self._add(_axes_order.scrambled("x", _channels_last(pictures, data_format), f" at layer `{layer}`"))

    def targets(self):
        outputs, losses, leaves = self.probe.outputs, self.probe.losses, self._targets()
        if self.model is None or len(outputs) != len(leaves):
            for name, y in leaves:
                if _are_classes(y, None):
                    self._add(_target_checks.class_balance(name, y))
                else:
                    self._add(_target_checks.target_scale(name, y, None))
            return
        for (name, y), output, loss in zip(leaves, outputs, losses, strict=True):
            kind = _target_checks.loss_kind(loss)
            units = output.shape[-1] if output.ndim > 1 else 1
            target = (len(output), *y.shape[1:])
            wrong = self._add(_target_checks.wrong_encoding(name, y, units, kind, output.ndim))
            if not wrong:
                ignored = getattr(loss, "ignore_class", None)
                wrong = self._add(_target_checks.out_of_range(name, y, units, kind, ignored))
            self._add(
                _target_checks.broadcasts(name, target, output.shape, kind),
                _target_checks.target_scale(name, y, kind) if kind in _target_checks.DISTANCES else None,
            )
            if not wrong and _are_classes(y, kind):
                self._add(_target_checks.class_balance(name, y))
        both = self.probe.losses_of_shapes
        if both is None or self._named("broadcast"):
            return
        if not np.isclose(*both, rtol=1e-3, atol=0, equal_nan=True):
            shapes = f"{_dims(leaves[0][1])} against outputs of {_dims(outputs[0])}"
            text = (
                f"`y` of shape {shapes} is broadcast in the loss of the model: it is {both[0]:.4g}, and {both[1]:.4g} "
                "with targets in the shape of the outputs. Give `y` that shape."
            )
            self._add(Finding("broadcast", text, evidence={"loss": both[0], "loss_in_shape": both[1]}))

    def conflicts(self):
        x, y = (_arrays(each) for each in (self.data.x, self.data.y))
        if x and y:
            numbers = sum(leaf[0].size for leaf in x)
            keys, labels = _input_checks.row_keys(x), _input_checks.row_keys(y)
            self._add(_input_checks.conflicting_labels(keys, labels, numbers))

    def against_validation(self):
        data, other = self.data, self.validation
        for label, a, b in (("x", data.x, other.x), ("y", data.y, other.y)):
            pairs = list(zip(named(label, a), named(label, b), strict=False))
            for (name, train), (_, validation) in pairs:
                if label == "y" and _are_classes(train, None):
                    self._add(_unknown_classes(name, train, validation))
                elif not _are_tokens(train) or train.shape[1:] != validation.shape[1:]:
                    self._add(_input_checks.scaled_differently(name, train, validation))
        x, x_other = _arrays(data.x), _arrays(other.x)
        same_kind = len(x) == len(x_other) and all(
            a.shape[1:] == b.shape[1:] for a, b in zip(x, x_other, strict=True)
        )
        if x and same_kind:
            x_other = [b.astype(a.dtype) for a, b in zip(x, x_other, strict=True)]
            self._add(_input_checks.leakage(_input_checks.row_keys(x), _input_checks.row_keys(x_other)))

    def shuffled(self):
        features = [_features(array) for array in _arrays(self.data.x)]
        labels = [_codes(array) for _, array in self._targets()]
        if not features or not labels:
            return
        found = _label_dependence.dependence(np.hstack(features), np.hstack(labels), self.seed)
        if found is None:
            return
        self.dependence = found
        if found.p_value > INDEPENDENT:
            text = (
                "The labels look shuffled: neither neighbours, a ridge regression nor single columns fit them better "
                f"than permuted labels (correlation {found.score:.3f} by {found.learner}, {found.chance:.3f} +- "
                f"{found.chance_stddev:.3f} for permuted ones, p = {found.p_value:.2f}). Look at a few samples with "
                "their labels: were `x` and `y` shuffled, sorted or filtered apart? Otherwise the relation is a "
                "subtle one."
            )
            self._add(Finding("labels_independent", text, evidence=found._asdict()))

    def _targets(self):
        """(name, array) of the targets, in the order of the outputs."""
        y, names = self.data.y, self.probe.names
        if isinstance(y, dict) and names and all(name in y for name in names):
            return [(f"y[{name!r}]", y[name]) for name in names]
        return list(named("y", y))

    def _add(self, *findings):
        self.findings += [finding for finding in findings if finding is not None]
        return any(finding is not None for finding in findings)

    def _named(self, name):
        return any(finding.name == name for finding in self.findings)


def named(name, structure):
    """(name, array) of each array of numbers: `x`, `x['image']`, `x[1]`; dicts in the order of their sorted keys."""
    return [(label, array) for label, array in _all_named(name, structure) if array.dtype.kind in "fiub"]


def _numbered(name, structure):
    return [(i, pair) for i, pair in enumerate(_all_named(name, structure)) if pair[1].dtype.kind in "fiub"]


def _all_named(name, structure):
    if isinstance(structure, dict):
        return [pair for key in sorted(structure) for pair in _all_named(f"{name}[{key!r}]", structure[key])]
    if isinstance(structure, (list, tuple)):
        return [pair for i, part in enumerate(structure) for pair in _all_named(f"{name}[{i}]", part)]
    return [] if structure is None else [(name, structure)]


def _arrays(structure):
    return [array for _, array in named("", structure)]


def _finite(data):
    """The samples without NaN and infinities."""
    good = np.ones(data.size, bool)
    for array in [*_arrays(data.x), *_arrays(data.y)]:
        if array.dtype.kind == "f":
            good &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return data if good.all() else data.take(np.flatnonzero(good))


def _are_tokens(array):
    """Are the numbers names of words? Nobody scales these."""
    return array.dtype.kind in "iu" and array.dtype != "uint8" and array.ndim == 2


def _are_classes(y, kind):
    if kind in _target_checks.SPARSE or _target_checks.is_one_hot(y):
        return True
    one_each = y.size == len(y)
    if kind in _target_checks.BINARY:
        return one_each
    few = len(np.unique(y)) <= min(50, max(2, len(y) // 5))
    return kind is None and one_each and _target_checks.is_integer(y) and few


def _unknown_classes(name, train, validation):
    if train.shape[1:] != validation.shape[1:]:
        return _input_checks.scaled_differently(name, train, validation)
    unknown = np.setdiff1d(validation, train)
    if not len(unknown):
        return None
    shown = ", ".join(f"{value:g}" for value in unknown[:5])
    text = f"`{name}`: the classes {shown} occur in validation only: coded differently, or never learned."
    return Finding("unknown_classes", text, evidence={"classes": unknown.tolist()})


def _features(array):
    flat = array.reshape(len(array), -1).astype("float64")
    if array.ndim == 3:  # of a sequence also what does not depend on when it happens
        return np.hstack([flat, array.mean(axis=1), array.std(axis=1)])
    if not _are_tokens(array):
        return flat
    counts = np.zeros((len(array), 512))
    np.add.at(counts, (np.arange(len(array))[:, None], array % 512), 1)
    return np.hstack([flat, counts])


def _codes(y):
    """(n, k) numbers that a correlation makes sense of."""
    if _are_classes(y, None) and not _target_checks.is_one_hot(y):
        classes = np.unique(y)
        return (y.reshape(len(y), 1) == classes).astype("float64")
    flat = y.reshape(len(y), -1).astype("float64")
    if flat.shape[1] == 1:  # a few large ones must not outvote the others
        flat = np.hstack([flat, np.argsort(np.argsort(flat, axis=0), axis=0)])
    return flat


def _channels_last(images, data_format):
    return np.transpose(images, (0, 2, 3, 1)) if data_format == "channels_first" else images


def _dims(array):
    return f"(n,{', '.join(['', *map(str, array.shape[1:])]).lstrip(',')})"
