"""From one norm a variable and step to what `GradientNormLogger` shows. NumPy only."""

import collections

import numpy as np

from tf_tricks.fit_hooks.gradients import clipped_norms

VANISHING = 1e-3  # first layer's norm over the last one's
EXPLODING = 100.0  # norm over its running median
MEDIAN_STEPS = 100  # how many steps the running median looks back
MIN_STEPS = 10  # and how many it needs


def groups(variables, model_name, per):
    """List of `(name, indices)` of trainable variables, in the order of the variables (input to output).

    A layer's name is the path of its variables without the model's own name: "dense", "block/query".
    """
    if per == "global":
        return []
    members = collections.OrderedDict()
    for index, variable in enumerate(variables):
        parts = variable.path.split("/")
        if parts[0] == model_name and len(parts) > 1:
            parts = parts[1:]
        if per == "layer":
            parts = parts[:-1] or [model_name]
        members.setdefault("/".join(parts), []).append(index)
    return list(members.items())


def root_sum_of_squares(norms, indices):
    """L2 norm over several tensors from the norms of each: `(k, n)` -> `(k,)`; tensors without gradient (NaN) count 0.

    A step in which none of them has a value is NaN, and so is one in which a value that should be there is not finite.
    """
    chosen = norms[:, indices]
    absent = np.isnan(chosen).all(axis=0) if len(chosen) else np.zeros(len(indices), bool)
    if absent.all():
        return np.full(len(norms), np.nan)
    chosen = chosen[:, ~absent]
    largest = np.maximum(np.max(np.abs(chosen), axis=1, keepdims=True, initial=0.0), 1e-300)
    with np.errstate(invalid="ignore"):
        return largest[:, 0] * np.sqrt(np.sum((chosen / largest) ** 2, axis=1))


def by_group(columns, members, optimizer):
    """Dict of arrays `(k,)` under "grad_norm/...", "clipped_grad_norm/...", "weight_norm/...", "update_ratio/..."."""
    norms = {"grad_norm": columns["grad_norm"]}
    reached = columns.get("applied_grad_norm", columns["grad_norm"])
    norms["clipped_grad_norm"] = clipped_norms(reached, optimizer)
    for name in ("weight_norm", "update_norm"):
        if name in columns:
            norms[name] = columns[name]
    values = {}
    for group, indices in [("global", list(range(columns["grad_norm"].shape[1]))), *members]:
        for name, norm in norms.items():
            values[f"{name}/{group}"] = root_sum_of_squares(norm, indices)
        if "update_norm" in norms:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = values.pop(f"update_norm/{group}") / values[f"weight_norm/{group}"]
            if optimizer.gradient_accumulation_steps:
                ratio = np.where(np.isnan(values[f"clipped_grad_norm/{group}"]), np.nan, ratio)
            values[f"update_ratio/{group}"] = ratio
    return values


class RunningMeans:
    """Means over an epoch, as plain floats. NaN (no value at this step) is left out; Inf is not."""

    def __init__(self):
        self._sums = {}

    def add(self, values):
        for key, array in values.items():
            there = ~np.isnan(array)
            total, count = self._sums.get(key, (0.0, 0))
            self._sums[key] = (total + array[there].sum(), count + int(there.sum()))

    def take(self):
        sums, self._sums = self._sums, {}
        return {key: float(total / count) if count else float("nan") for key, (total, count) in sums.items()}


class Watch:
    """Names vanishing and exploding gradients, once each."""

    def __init__(self):
        self._recent = collections.deque(maxlen=MEDIAN_STEPS)
        self._ratios = []
        self._said = set()

    def look(self, steps, values, names):
        """Sentences about what is new in these steps; `names` of the groups, input to output."""
        found = [self._exploding(steps, values, names), self._vanishing(values, names)]
        return [sentence for sentence in found if sentence]

    def _exploding(self, steps, values, names):
        for i, norm in enumerate(values["grad_norm/global"]):
            usual = np.median(self._recent) if len(self._recent) >= MIN_STEPS else np.inf
            if "exploding" not in self._said and norm > EXPLODING * usual:
                self._said.add("exploding")
                of_groups = [values[f"grad_norm/{name}"][i] for name in names]
                where = f", most of it in `{names[int(np.nanargmax(of_groups))]}`" if names else ""
                return (
                    f"the gradient explodes at step {steps[i]}: its norm {norm:.3g} is {norm / usual:.0f} times the "
                    f"median of the last {len(self._recent)} steps{where}. Lower the learning rate or set "
                    f"`global_clipnorm` (a little above {usual:.2g})."
                )
            if np.isfinite(norm):
                self._recent.append(norm)
        return None

    def _vanishing(self, values, names):
        if "vanishing" in self._said or len(names) < 2:
            return None
        first, last = values[f"grad_norm/{names[0]}"], values[f"grad_norm/{names[-1]}"]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = first / last
        self._ratios.extend(ratios[np.isfinite(ratios)])
        if len(self._ratios) < MIN_STEPS or np.median(self._ratios) >= VANISHING:
            return None
        self._said.add("vanishing")
        return (
            f"the gradient vanishes on its way to the input: the norm in `{names[0]}` is {np.median(self._ratios):.1g} "
            f"of that in `{names[-1]}`. Look at the initialisation, saturated activations and missing shortcuts."
        )
