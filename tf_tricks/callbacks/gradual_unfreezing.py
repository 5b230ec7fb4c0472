"""Fine-tuning in stages during one `fit`: the head first, then the layers below it."""

import bisect
import contextlib
import itertools
import numbers
import warnings
import weakref

import keras

from tf_tricks import fit_hooks
from tf_tricks._checks import check_bool, check_integer, check_number, check_optional
from tf_tricks.callbacks import _layer_groups as groups
from tf_tricks.callbacks._layer_order import Traces, UnknownOrder
from tf_tricks.fit_hooks import running_fit
from tf_tricks.fit_hooks.freezing import Freeze
from tf_tricks.fit_hooks.learning_rate import optimizer_rate

PRESETS = {"small": 1, "medium": 2, "large": 2}  # name -> number of stages
LAST_BLOCKS = 1 / 3  # of the base, in "medium"
LATER_RATE = 0.1  # what later stages multiply the learning rate by, unless told otherwise


def begins(epochs, count):
    """The epochs with which the stages begin; `epochs` is the length of each stage but the last, or a list of them."""
    lengths = [epochs] * (count - 1) if isinstance(epochs, int) else epochs
    return [0, *itertools.accumulate(lengths)]


def stage_at(epoch, first_epochs):
    """The stage of an epoch, both from 0."""
    return bisect.bisect_right(first_epochs, epoch) - 1


@keras.saving.register_keras_serializable(package="tf_tricks")
class GradualUnfreezing(keras.callbacks.Callback):
    """Fine-tune a pre-trained model in stages during one `fit`: the head first, then more and more layers.

    What is frozen is frozen inside of the train step. There it is as with `trainable=False` and `compile` by hand: no
    update, no weight decay, no part in clipping, batch normalisation in inference mode; no gradient is computed that
    nobody needs. Between two steps nothing has changed: the flags `trainable`, the optimizer, saved files. Nothing is
    compiled anew but the step, once a stage. The optimizer keeps the moments of the weights that are trained already;
    those of new ones are zero, and their bias correction (Adam) begins when they do.

    Build the model with all layers trainable: what you freeze with `trainable=False` yourself stays frozen. The loss
    goes on to include the regularisation of frozen weights. With `use_ema` their averages equal them up to rounding.

    `logs["learning_rate"]` is the rate of the last step of the epoch, `logs["unfreezing/stage"]` the stage, from 0.

    Args:
        stages: how much to unfreeze. By the size of your data: "small": the head alone; "medium": the head, then the
            last third of the blocks below, too; "large": the head, then all. Or a list with an entry for each stage:
            floats in (0, 1], growing, the share of the layers with weights that is trained, counted from the output;
            or layers, their names, patterns such as "block5_*" or "resnet50/conv5_*", a model inside the model, or
            lists of these: what the stage trains beside the stages before. What no stage names stays frozen.
            The head is what stands after the model inside the model, be it layers or a second model; else the last
            layer with weights of each output. Layers of a subclassed model count in the order in which it calls them.
        learning_rates: None: the rate of the optimizer, after the first stage a tenth of it; or a list of floats > 0,
            one for each stage.
        relative: bool. False: `learning_rates` are rates, for an optimizer whose rate is a float. True: they multiply
            the rate of the optimizer, whatever that is: a schedule, too.
        epochs: int >= 1, or a list of them, the length of each stage but the last, which lasts until the end of the
            run. Counted from epoch 0, also when `initial_epoch > 0`.
        freeze_batch_norm: bool. True: batch normalisation below the layers of the first stage keeps its statistics and
            uses them (inference mode) throughout; scale and offset are trained with their stage. False: it goes back
            to the statistics of the batch with its stage.
        verbose: 0: silent; 1: a line at the begin of each stage.
    Raises:
        TypeError, ValueError: an argument is out of range; in `fit`: a name matches no layer, a stage adds no weight
            that could be trained, the rate of the optimizer is a schedule and `relative` False; the order in which a
            subclassed model calls its layers cannot be found out, and `stages` are no names.
    Reference:
        Howard and Ruder (2018), Universal Language Model Fine-tuning for Text Classification, arXiv:1801.06146,
        section 3.3 (gradual unfreezing, one epoch a stage); Yosinski et al. (2014), How transferable are features in
        deep neural networks?, arXiv:1411.1792 (the last layers transfer least); Kornblith, Shlens and Le (2019),
        arXiv:1805.08974, section 4 (fine-tuning against training the head alone).
    Example:
        >>> unfreezing = GradualUnfreezing("large", learning_rates=[1e-3, 1e-5], epochs=2)
        >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[unfreezing]).history
        >>> history["unfreezing/stage"], [round(rate, 7) for rate in history["learning_rate"]]
        ([0.0, 0.0, 1.0], [0.001, 0.001, 1e-05])
    """

    async_safe = True

    def __init__(
        self,
        stages="medium",
        learning_rates=None,
        relative=False,
        epochs=1,
        freeze_batch_norm=True,
        verbose=0,
    ):
        super().__init__()
        self.stages = _check_stages(stages)
        self.num_stages = PRESETS[stages] if isinstance(stages, str) else len(self.stages)
        self.learning_rates = check_optional(_check_rates, "learning_rates", learning_rates, self.num_stages)
        self.relative = check_bool("relative", relative)
        self.epochs = _check_epochs(epochs, self.num_stages)
        self.freeze_batch_norm = check_bool("freeze_batch_norm", freeze_batch_norm)
        self.verbose = check_integer("verbose", verbose, 0)
        self._first_epochs = begins(self.epochs, self.num_stages)
        self._hook = self._plans = self._optimizer = self._resumed = None
        self._factors, self._since = [], []

    def on_train_begin(self, logs=None):
        fit_hooks.require_optimizer(self.model, self)
        self._build(self.model)
        self._plans = self._stage_plans(self.model)
        self._remember(fit_hooks.innermost(self.model.optimizer))
        self._hook = fit_hooks.attach(self.model, self, rate=self._rate, freeze=self._freeze(0))
        try:
            self._factors = self._stage_factors(fit_hooks.innermost(self.model.optimizer))
        except ValueError:
            self._hook.detach(self)
            raise
        if self._first_epochs[-1] >= self.params["epochs"]:
            warnings.warn(
                f"GradualUnfreezing: the last of {self.num_stages} stages begins with epoch {self._first_epochs[-1]}, "
                f"which this `fit` does not reach. Make `fit` longer or the stages shorter. Received: "
                f"epochs={self.params['epochs']} in `fit`, epochs={self.epochs} here",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch, logs=None):
        if self._resumed is not None:
            self._since, self._factors = list(self._resumed["since"]), list(self._resumed["factors"])
            self._resumed = None
        self._hook.begin_epoch(epoch, self.params["steps"])
        stage = stage_at(epoch, self._first_epochs)
        frozen, _ = self._plans[stage]
        optimizer = fit_hooks.innermost(self.model.optimizer)
        now = int(keras.ops.convert_to_numpy(optimizer.iterations))
        # Not later than now: another callback may have put an earlier state back.
        known = [None if since is None else min(since, now) for since in self._since]
        known = [now if since is None and i not in frozen else since for i, since in enumerate(known)]
        if epoch in self._first_epochs:
            self._tell(epoch, stage)
        self._since = known
        self._hook.freeze(self, self._freeze(stage))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = self._hook.last_learning_rate()
            logs["unfreezing/stage"] = float(stage_at(epoch, self._first_epochs))

    def on_train_end(self, logs=None):
        self._hook.detach(self)
        self._hook = self._plans = None

    def get_state(self):
        """What a run that is resumed needs; see `TrainingCheckpoint`."""
        return {"since": list(self._since), "factors": list(self._factors)}

    def set_state(self, state):
        """Go on where the run of `get_state` was, in the next `fit` or in the one that is just beginning."""
        self._resumed = state

    # --- the plan -----------------------------------------------------------------------------------------------------

    def _build(self, model):
        """Have model and optimizer create their variables: for all layers, not for those of the first stage alone."""
        if not all(layer.built for layer in [model, *model.layers]):
            running_fit.build(running_fit.running_fit(model, self))
        if not all(layer.built for layer in [model, *model.layers]):
            raise ValueError(
                "GradualUnfreezing: the model is not built, so its layers have no weights yet. Call it on a batch "
                "before `fit`. Received: model.built=False"
            )
        if not model.optimizer.built:
            strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's alone
            with contextlib.nullcontext() if strategy is None else strategy.scope():
                model.optimizer.build(model.trainable_variables)

    def _stage_plans(self, model):
        """(positions of frozen variables, layers in inference mode) of each stage."""
        found, added_by_stage = self._units_of_stages(model)
        positions = {id(v): i for i, v in enumerate(model.trainable_variables)}
        trained, first, plans = [], set(), []
        for stage, added in enumerate(added_by_stage):
            before = {id(unit) for unit in trained}
            new = [unit for unit in added if id(unit) not in before]
            if not any(unit.variables for unit in new):
                raise ValueError(self._nothing_new(stage, added, found))
            trained += new
            thawed = {id(unit) for unit in trained}
            first = first or thawed
            frozen = [unit for unit in found if id(unit) not in thawed]
            layers = [layer for unit in frozen for layer in unit.layers()]
            if self.freeze_batch_norm:
                base = [unit for unit in found if id(unit) in thawed and id(unit) not in first]
                layers += [layer for unit in base for layer in unit.layers() if groups.is_batch_norm(layer)]
            plans.append((frozenset(positions[id(v)] for unit in frozen for v in unit.variables), tuple(layers)))
        return plans

    def _units_of_stages(self, model):
        """All units, and what each stage trains beside the stages before."""
        if isinstance(self.stages, list) and isinstance(self.stages[0], list):  # names need no order
            found = groups.units(model)
            return found, [self._matching(stage, entries, found) for stage, entries in enumerate(self.stages)]
        traces = Traces()
        try:
            found = groups.units(model, traces)
            if not isinstance(self.stages, str):
                return found, [groups.last_share(found, share) for share in self.stages]
            head = groups.head(model, found, traces)
        except UnknownOrder as error:
            raise ValueError(
                f"GradualUnfreezing: {error}, which `stages={self.stages!r}` needs. Give `stages` as a list of names "
                f"of layers. Layers: {', '.join(unit.path for unit in groups.units(model))}"
            ) from None
        base = [unit for unit in found if unit not in head]
        below = {"small": [], "medium": [groups.last_blocks(base, LAST_BLOCKS)], "large": [base]}
        return found, [head, *below[self.stages]]

    def _matching(self, stage, entries, found):
        added = []
        for entry in entries:
            matching = [unit for unit in found if unit.matches(entry)]
            if not matching:
                name = entry if isinstance(entry, str) else entry.name
                raise ValueError(
                    f"GradualUnfreezing: no layer of the model matches {name!r} of `stages[{stage}]`. Layers: "
                    f"{', '.join(unit.path for unit in found)}. Correct the name or pattern."
                )
            added += matching
        return added

    def _nothing_new(self, stage, added, found):
        names = ", ".join(unit.path for unit in added) or "none"
        trainable = ", ".join(unit.path for unit in found if unit.variables) or "none"
        return (
            f"GradualUnfreezing: stage {stage} adds no weight that could be trained. Its layers: {names}. Layers with "
            f"trainable weights: {trainable}. Set `trainable = True` on what shall be unfrozen, call `compile`, and "
            "leave the freezing to this callback; or take the stage out."
        )

    def _stage_factors(self, optimizer):
        """The multiplier of the optimizer's rate for each stage."""
        if self.learning_rates is None:
            return [1.0] + [LATER_RATE] * (self.num_stages - 1)
        if self.relative:
            return self.learning_rates
        is_schedule = callable(optimizer_rate(optimizer))
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        if is_schedule or not rate:
            kind = "a schedule" if is_schedule else "0"
            raise ValueError(
                f"GradualUnfreezing: `learning_rates` are rates, and that of the optimizer is {kind}. Pass "
                f"`relative=True` and multipliers, or compile with a float. Received: relative={self.relative}"
            )
        return [wanted / rate for wanted in self.learning_rates]

    def _rate(self, position):
        return self._factors[stage_at(position.epoch, self._first_epochs)]

    def _remember(self, optimizer):
        """Since which iteration is each variable trained? None for "not yet"."""
        now, count = int(keras.ops.convert_to_numpy(optimizer.iterations)), len(self.model.trainable_variables)
        ours = self._optimizer is not None and self._optimizer() is optimizer and len(self._since) == count
        if now == 0:
            self._since = [None] * count
        elif not ours or now < max((since or 0 for since in self._since), default=0):
            self._since = [0] * count  # others have trained it before
        self._optimizer = weakref.ref(optimizer)

    def _freeze(self, stage):
        return Freeze(*self._plans[stage], tuple(since or 0 for since in self._since))

    def _tell(self, epoch, stage):
        if self.verbose:
            frozen, _ = self._plans[stage]
            count = len(self._since)
            print(
                f"\nEpoch {epoch + 1}: GradualUnfreezing begins stage {stage + 1} of {self.num_stages}: "
                f"{count - len(frozen)} of {count} variables are trained, at {self._hook.learning_rate():.3g}."
            )

    def get_config(self):
        return {
            "stages": self.stages if isinstance(self.stages, str) else [_named(stage) for stage in self.stages],
            "learning_rates": self.learning_rates,
            "relative": self.relative,
            "epochs": self.epochs,
            "freeze_batch_norm": self.freeze_batch_norm,
            "verbose": self.verbose,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _named(stage):
    return stage if isinstance(stage, float) else [entry if isinstance(entry, str) else entry.name for entry in stage]


def _check_stages(stages):
    """`stages` as the name of a preset, a list of floats or a list of lists of layers and str."""
    accepted = (
        f"`stages` must be one of {', '.join(map(repr, PRESETS))}, or a list of growing floats in (0, 1], or a list of "
        f"layers, names or lists of them. Received: stages={stages!r}"
    )
    if isinstance(stages, str):
        if stages not in PRESETS:
            raise ValueError(accepted)
        return stages
    if not isinstance(stages, list | tuple):
        raise TypeError(accepted)
    if stages and all(_is_number(stage) for stage in stages):
        shares = [float(stage) for stage in stages]
        if not all(low < high for low, high in itertools.pairwise([0.0, *shares])) or not shares[-1] <= 1:
            raise ValueError(accepted)
        return shares
    lists = [list(stage) if isinstance(stage, list | tuple) else [stage] for stage in stages]
    if any(not isinstance(entry, str | keras.layers.Layer) for stage in lists for entry in stage):
        raise TypeError(accepted)
    if not lists or not all(lists):
        raise ValueError(accepted)
    return lists


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_rates(name, rates, count):
    if not isinstance(rates, list | tuple):
        raise TypeError(f"`{name}` must be None or a list of {count} floats > 0. Received: {name}={rates!r}")
    if len(rates) != count or any(not _is_number(rate) or not 0 < rate < float("inf") for rate in rates):
        raise ValueError(f"`{name}` must be None or a list of {count} floats > 0. Received: {name}={rates!r}")
    return [check_number(name, rate) for rate in rates]


def _check_epochs(epochs, count):
    if not isinstance(epochs, list | tuple):
        accepted = f"`epochs` must be an int >= 1, or a list of {count - 1} of them. Received: epochs={epochs!r}"
        if isinstance(epochs, bool) or not isinstance(epochs, numbers.Integral):
            raise TypeError(accepted)
        if epochs < 1:
            raise ValueError(accepted)
        return int(epochs)
    whole = [isinstance(each, numbers.Integral) and not isinstance(each, bool) and each >= 1 for each in epochs]
    if len(epochs) != count - 1 or not all(whole):
        raise ValueError(f"`epochs` must be an int >= 1, or a list of {count - 1} of them. Received: epochs={epochs!r}")
    return [int(each) for each in epochs]
