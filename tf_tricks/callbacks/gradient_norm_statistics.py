"""From one norm a variable and step to what `GradientNormLogger` shows. NumPy only.

A table is an array `(k, 1 + m)`: k steps, first the global value, then m groups of variables.
"""

import collections

import numpy as np

from tf_tricks.fit_hooks.gradients import clipped_norms

VANISHING = 1e-3  # first layer's norm over the last one's
EXPLODING = 100.0  # norm over its running median
MEDIAN_STEPS = 100  # how many steps the running medians look back
MIN_STEPS = 10  # and how many they need

KINDS = ("grad_norm", "clipped_grad_norm", "weight_norm", "update_ratio")


def groups(variables, model_name, per):
    """List of `(name, indices)` of trainable variables, in the order of the variables (as a rule input to output).

    A layer's name is the path of its variables without the model's own name: "dense", "block/query". Where two layers
    have the same path, the later one gets a number, and so has a layer called "global".
    """
    if per == "global":
        return []
    members, seen, latest = {"global": []}, collections.Counter(), {}
    for index, variable in enumerate(variables):
        parts = variable.path.split("/")
        if parts[0] == model_name and len(parts) > 1:
            parts = parts[1:]
        path = "/".join(parts)
        name = path if per == "variable" else "/".join(parts[:-1]) or model_name
        # A path that comes again belongs to another layer of that name: its first variable opens a new group.
        if name not in latest or seen[path] >= seen[name, "groups"]:
            seen[name, "groups"] += 1
            latest[name] = _free(name, members)
        seen[path] += 1
        members.setdefault(latest[name], []).append(index)
    del members["global"]
    return list(members.items())


def _free(name, taken):
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def table(norms, members):
    """L2 norms over all variables and over each group: `(k, n)` -> `(k, 1 + m)`; NaN where one of them is NaN."""
    squares = np.square(norms, dtype="float64")  # norms are float32, so their squares fit
    sums = [squares.sum(axis=1), *(squares[:, indices].sum(axis=1) for _, indices in members)]
    return np.sqrt(np.stack(sums, axis=1))


def tables(columns, members, optimizer):
    """Dict of tables, by kind, from the columns that the fit hook recorded."""
    reached = columns.get("applied_grad_norm", columns["grad_norm"])
    found = {
        "grad_norm": table(columns["grad_norm"], members),
        "clipped_grad_norm": table(clipped_norms(reached, optimizer), members),
    }
    if "update_norm" in columns:
        found["weight_norm"] = table(columns["weight_norm"], members)
        update_norm = table(columns["update_norm"], members)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(update_norm == 0, 0.0, update_norm / found["weight_norm"])
        if optimizer.gradient_accumulation_steps:
            ratio[only_accumulates(columns)] = np.nan
        found["update_ratio"] = ratio
    return found


def only_accumulates(columns):
    """Which steps add to an accumulated gradient without an update: `(k,)`."""
    applied = columns["applied_grad_norm"]
    return np.isnan(applied).any(axis=1) & ~np.isnan(columns["grad_norm"]).any(axis=1)


class RunningMeans:
    """Means over an epoch. A NaN makes its mean NaN; steps that have no value by design are left out."""

    def __init__(self):
        self._sums = {}

    def add(self, found, counted):
        """Take in tables; `counted` holds, for each kind, which of the steps have a value `(k,)`."""
        for kind, values in found.items():
            values = values[counted[kind]]
            total, count = self._sums.get(kind, (np.zeros(values.shape[1:]), 0))
            # One row after the other: the sum must not depend on how many rows come at a time.
            self._sums[kind] = (np.concatenate([total[None], values]).sum(axis=0), count + len(values))

    def take(self, kinds, names):
        """Dict of plain floats under "<kind>/<name>", NaN for a mean over no step; then begin anew."""
        sums, self._sums = self._sums, {}
        means = {}
        for kind in kinds:
            total, count = sums.get(kind, (0.0, 0))
            values = np.broadcast_to(total / count if count else np.nan, (len(names),)).tolist()
            means.update({f"{kind}/{name}": value for name, value in zip(names, values, strict=True)})
        return means

    def get_state(self):
        """The sums so far, as a tree of plain values."""
        return {kind: list(pair) for kind, pair in self._sums.items()}

    def set_state(self, state):
        """Go on with the sums of `get_state`."""
        self._sums = {kind: tuple(pair) for kind, pair in state.items()}


class Watch:
    """Names vanishing and exploding gradients, once each."""

    def __init__(self):
        self._norms = collections.deque(maxlen=MEDIAN_STEPS)
        self._ratios = collections.deque(maxlen=MEDIAN_STEPS)
        self._said = set()

    def get_state(self):
        """What was seen and said, as a tree of plain values."""
        return {"norms": list(self._norms), "ratios": list(self._ratios), "said": sorted(self._said)}

    def set_state(self, state):
        """Go on where the watch of `get_state` was."""
        self._norms.extend(state["norms"])
        self._ratios.extend(state["ratios"])
        self._said.update(state["said"])

    def look(self, steps, norms, layers):
        """Sentences about what is new.

        Args:
            steps: ints `(k,)`.
            norms: table of gradient norms `(k, 1 + m)` over all variables and over each layer.
            layers: the m names of the layers, input to output.
        """
        found = [self._exploding(steps, norms, layers), self._vanishing(norms, layers)]
        return [sentence for sentence in found if sentence]

    def _exploding(self, steps, norms, layers):
        if "exploding" in self._said:
            return None
        total = norms[:, 0]
        # The median is not below the least value: in healthy steps nothing more than this is computed.
        least = min([*self._norms, *total[np.isfinite(total)]], default=np.inf)
        calm = not np.any(total > EXPLODING * least)
        for i, norm in enumerate(total):
            usual = np.median(self._norms) if not calm and len(self._norms) >= MIN_STEPS else np.inf
            if norm > EXPLODING * usual:
                self._said.add("exploding")
                layer = layers[int(np.nanargmax(norms[i, 1:]))]
                times = f" is {norm / usual:.0f} times" if np.isfinite(norm) else " compares with"
                return (
                    f"the gradient explodes at step {steps[i]}, most of all in `{layer}`: its norm, {norm:.3g},{times} "
                    f"the median of the last {len(self._norms)} steps, {usual:.3g}. Lower the learning rate, or set "
                    "`global_clipnorm` a little above that median."
                )
            if np.isfinite(norm):
                self._norms.append(norm)
        return None

    def _vanishing(self, norms, layers):
        if "vanishing" in self._said or len(layers) < 2:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = norms[:, 1] / norms[:, -1]
        self._ratios.extend(ratios[~np.isnan(ratios)])
        if len(self._ratios) < MIN_STEPS or np.median(self._ratios) >= VANISHING:
            return None
        self._said.add("vanishing")
        return (
            f"the gradient vanishes on its way to the input: its norm in `{layers[0]}` is {np.median(self._ratios):.1g}"
            f" of that in `{layers[-1]}`. Look at the initialisation, saturated activations and missing shortcuts."
        )
