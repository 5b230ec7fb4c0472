"""Which checks apply to a set of data, and what they are given."""

import keras
import numpy as np

from tf_tricks.debug import _axes_order, _equal_samples, _input_checks, _label_dependence, _target_checks
from tf_tricks.debug._input_probe import Probe, probe
from tf_tricks.debug._input_rows import all_named, arrays_of, named
from tf_tricks.debug._result import Finding

PROBED = 64  # samples that the model sees


class Examination:
    """The checks of one set of data, in an order in which the dear ones come last.

    Args:
        rows, validation: `Rows`; validation may be None.
        model: keras.Model or None.
        seed: int.
    """

    def __init__(self, rows, model, validation, seed):
        self.rows, self.validation, self.model, self.seed = rows, validation, model, seed
        self.data, self.y = rows.sample, rows.targets()
        self.findings, self.dependence, self.probe, self.keys = [], None, Probe(), None
        self.are_unmistakable = False

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
        if self.validation is not None and self.validation.sample.size:
            found.append(("validation", self.against_validation))
        if self.data.y is not None and self.data.size >= _label_dependence.FEWEST:
            found.append(("shuffled labels", self.shuffled))
        return found

    def result(self):
        """The attributes of an `InputCheck`, but for what was skipped."""
        everything, validation = self.rows.everything, self.validation
        arrays = [*named("x", everything.x), *named("y", everything.y)]
        shapes = {name: f"{_dims(a)} {a.dtype}" for name, a in arrays}
        points = {}
        for name, array in named("x", self.data.x):
            if array.size:
                columns = _input_checks.columns_of(array[:2000])[:, :256]
                points[name] = np.percentile(columns, [0, 5, 50, 95, 100], axis=0)
        faults = sorted(self.findings, key=lambda finding: not finding.is_fault)
        return {
            "findings": faults,
            "num_samples": everything.size,
            "num_sampled": self.data.size,
            "num_validation_samples": validation.everything.size if validation else 0,
            "shapes": shapes,
            "dependence": self.dependence,
            "percentiles": points,
        }

    def finiteness(self):
        sets = [("x", self.rows.everything.x), ("y", self.rows.everything.y)]
        if self.validation is not None:
            other = self.validation.everything
            sets += [("validation x", other.x), ("validation y", other.y)]
        for label, structure in sets:
            for name, array in named(label, structure):
                self._add(_input_checks.not_finite(name, array))

    def columns(self):
        everything = named("x", self.rows.everything.x)
        for (name, some), (_, array) in zip(named("x", self.data.x), everything, strict=True):
            self._add(_input_checks.constant_columns(name, array), _input_checks.duplicate_columns(name, some, array))

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
                self._add(_target_checks.does_not_fit(name, target, output.shape, kind))
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
        everything, rows = self.rows.everything, self.rows.finite
        x, y = arrays_of(everything.x), arrays_of(everything.y)
        if x and y:
            keys, labels = self._keys(), _equal_samples.row_keys(y, rows)
            self._add(_equal_samples.conflicting_labels(keys, labels, self.are_unmistakable, rows))

    def against_validation(self):
        data, other = self.data, self.validation.sample
        for (name, train), (_, validation) in zip(named("x", data.x), named("x", other.x), strict=False):
            if not _are_tokens(train) or train.shape[1:] != validation.shape[1:]:
                self._add(_input_checks.scaled_differently(name, train, validation))
        kinds = dict(zip((name for name, _ in self._targets()), self._kinds(), strict=True))
        for (name, train), (_, validation) in zip(
            named("y", self.y), named("y", self.validation.targets()), strict=False
        ):
            kind = kinds.get(name)
            if _are_classes(train, kind):
                self._add(_unknown_classes(name, train, validation, kind is not None))
            elif not _are_tokens(train) or train.shape[1:] != validation.shape[1:]:
                self._add(_input_checks.scaled_differently(name, train, validation))
        everything, rows = self.validation.everything, self.validation.finite
        x, x_other = arrays_of(self.rows.everything.x), arrays_of(everything.x)
        same_kind = len(x) == len(x_other) and all(a.shape[1:] == b.shape[1:] for a, b in zip(x, x_other, strict=True))
        if x and same_kind:
            keys, others = self._keys(), _equal_samples.row_keys(x_other, rows, [each.dtype for each in x])
            self._add(_equal_samples.leakage(keys, others, self.are_unmistakable, self.rows.finite, rows))

    def shuffled(self):
        generator, most = np.random.default_rng(self.seed), _label_dependence.SAMPLES
        chosen = np.sort(generator.choice(self.data.size, min(most, self.data.size), replace=False))
        data = self.data.take(chosen)
        features = [_features(array, generator) for array in arrays_of(data.x)]
        labels = [_codes(array) for _, array in self._targets(data.y)]
        if not features or not labels:
            return
        found = _label_dependence.dependence(np.hstack(features), np.hstack(labels), self.seed)
        if found is None:
            return
        self.dependence = found
        if found.looks_independent:
            self._add(_labels_independent(found))

    def _targets(self, y=None):
        """(name, array) of the targets, in the order of the outputs."""
        y, names = self.y if y is None else y, self.probe.names
        if isinstance(y, dict) and names and all(name in y for name in names):
            return [(f"y[{name!r}]", y[name]) for name in names]
        return list(named("y", y))

    def _kinds(self):
        """The kind of loss of each of the targets; None where it is not known."""
        count, losses = len(self._targets()), self.probe.losses
        return [_target_checks.loss_kind(loss) for loss in losses] if len(losses) == count else [None] * count

    def _keys(self):
        """Of the features of all finite samples. They take a while: made once."""
        if self.keys is None:
            x, rows = arrays_of(self.rows.everything.x), self.rows.finite
            self.keys = _equal_samples.row_keys(x, rows)
            self.are_unmistakable = _equal_samples.are_unmistakable(x, self.keys, rows)
        return self.keys

    def _add(self, *findings):
        self.findings += [finding for finding in findings if finding is not None]
        return any(finding is not None for finding in findings)

    def _named(self, name):
        return any(finding.name == name for finding in self.findings)


def _numbered(name, structure):
    return [(i, pair) for i, pair in enumerate(all_named(name, structure)) if pair[1].dtype.kind in "fiub"]


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


def _labels_independent(found):
    chance = f"{found.chance:.3f} +- {found.chance_stddev:.3f} for permuted ones, p = {found.p_value:.2f}"
    seen = (
        "neither neighbours, a ridge regression, single columns nor pairs of them fit them better than permuted labels "
        f"(correlation {found.score:.3f} by {found.learner}, {chance})"
    )
    if found.is_independent:
        text = (
            f"The labels look shuffled: {seen}, and a linear relation that explains "
            f"{100 * _label_dependence.WEAK:.0f} % of them would have shown. Look at a few samples with their labels: "
            "were `x` and `y` shuffled, sorted or filtered apart? Otherwise the relation is a subtle one."
        )
    else:
        text = (
            f"The labels may be shuffled, or the relation is too weak for this many samples and features: {seen}. Look "
            "at a few samples with their labels, or give more of them."
        )
    return Finding("labels_independent", text, found.is_independent, found._asdict())


def _unknown_classes(name, train, validation, are_known_classes):
    if train.shape[1:] != validation.shape[1:]:
        return _input_checks.scaled_differently(name, train, validation)
    unknown = np.setdiff1d(validation, train)
    if not len(unknown):
        return None
    shown = ", ".join(f"{value:g}" for value in unknown[:5]) + ", ..." * (len(unknown) > 5)
    if are_known_classes:
        text = f"`{name}`: the classes {shown} occur in validation only: coded differently, or never learned."
    else:  # numbers of things are whole numbers too
        text = f"`{name}`: the whole numbers {shown} occur in validation only. If they are classes, none is learned."
    return Finding("unknown_classes", text, are_known_classes, {"classes": unknown.tolist()})


def _features(array, generator):
    flat = array.reshape(len(array), -1)
    most = _label_dependence.COLUMNS
    if flat.shape[1] > most:
        flat = flat[:, np.sort(generator.choice(flat.shape[1], most, replace=False))]
    flat = flat.astype("float64")
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
