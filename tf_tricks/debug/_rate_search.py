"""The experiment of `find_learning_rate`: range tests, short trainings, and the verdict on the present rate."""

import math

import numpy as np

from tf_tricks.debug import _rates
from tf_tricks.debug._result import Finding

POINTS, FEWEST_POINTS = 80, 25  # of the range test
SWEEPS = 3  # range tests, each with other batches
LENGTHS = (40, 120, 400)  # steps of the short trainings, of one round after the other
SPACING = 2.0  # between the rates of the short trainings
FINE = 2.0 ** np.arange(-1.5, 1.0, 0.5)  # times the best of them: the rates of the last ones; luck favours high rates
ORDERS = 3  # of the batches, for each of the last ones
WIDE = 3.0  # times its lowest rate: a basin that reaches further has a steady middle
FAR, LITTLE = 10, 0.5  # a rate is too low if it is so far below the suggestion and makes so little of its progress


class RateSearch:
    """The experiment, in a loan."""

    def __init__(self, loan, data, batch_size, budget, seed, present):
        self.loan, self.data, self.batch_size, self.budget, self.seed = loan, data, batch_size, budget, seed
        self.present, self.present_loss = present, None

    def fields(self, lowest, highest):
        """The fields of a `LearningRates`, by name."""
        rates = self._points(lowest, highest)
        runs = [self._sweep(rates, self.seed + number) for number in range(SWEEPS)]
        # A sweep that the budget cut short would shorten the common curve.
        whole = [run for run, complete in runs if run and complete] or [run for run, _ in runs[:1]]
        curve = _rates.common_curve(whole)
        if not len(curve):
            return self._nothing(rates, [], Finding("not_finite", NOT_FINITE))
        flat = max(1, len(rates) // 10)
        begin = np.concatenate([run[:flat] for run in whole])
        start, noise = float(np.mean(begin)), float(np.std(begin))
        losses = _rates.smoothed(curve, start=start)
        steepest = _rates.steepest_rate(rates, losses)
        first = rates[len(losses) // 2] if steepest is None else steepest
        tried, reached, length = self._rounds(first, rates[-1], start)
        if not tried:
            fell = steepest is not None and start - np.min(losses) > max(noise, 1e-4 * abs(start))
            if not fell and self.budget.over():  # a range test sees each rate for one step: that it is flat says little
                return self._nothing(rates, losses, _SHORT)
            if not fell:
                return self._nothing(rates, losses, _does_not_learn(start, float(np.min(losses))))
            safe = float(rates[int(np.argmin(losses))])
            return self._result(steepest, safe, steepest, None, (rates, losses), ([], [], 0), [_SHORT])
        best = float(np.nanmin(reached))
        averaged = max(1, length // 4)
        if start - best < 4 * noise * math.sqrt(1 / averaged + 1 / len(begin)) or start - best <= 1e-4 * abs(start):
            return self._nothing(rates, losses, _does_not_learn(start, best), (tried, reached, length))
        tried, reached, near = self._refined(tried, reached, length, rates[-1], _tolerance(best, start))
        averages = [loss for rate, loss in zip(tried, reached, strict=True) if rate in near]
        suggestion = _rates.best_rate(near, averages, _tolerance(np.nanmin(averages), start))
        safe = max(suggestion, _rates.largest_safe_rate(tried, reached, start))
        verdict, findings = self._judge(suggestion, safe, best, start, length)
        return self._result(suggestion, safe, steepest, verdict, (rates, losses), (tried, reached, length), findings)

    # --- the range test -----------------------------------------------------------------------------------------------

    def _points(self, lowest, highest):
        """The rates of a sweep: fewer for a model of which the budget allows few steps."""
        self._train(self.present, 2, self.seed)  # traces and compiles
        before = self.budget.elapsed()
        taken = len(self._train(self.present, 3, self.seed))
        points = POINTS
        if self.budget.seconds:
            each = (self.budget.elapsed() - before) / max(1, taken)
            points = int(min(points, max(0, self.budget.seconds - self.budget.elapsed()) / 8 / max(each, 1e-9)))
        if self.budget.limit:
            points = min(points, (self.budget.limit - self.budget.taken) // 8)
        return np.geomspace(lowest, highest, max(FEWEST_POINTS, points))

    def _sweep(self, rates, seed):
        """(losses, is complete): of one range test."""
        self.loan.reset()
        losses, best, average = [], math.inf, 0.0
        batches = self.data.batches(self.batch_size, seed)
        for step in self.budget.steps(len(rates)):
            self.loan.learning_rate = float(rates[step])
            loss = self.loan.step(*next(batches))
            if not math.isfinite(loss):
                return losses, True
            losses.append(loss)
            average = 0.9 * average + 0.1 * loss
            now = average / (1 - 0.9 ** len(losses))
            start = losses[0] if len(losses) < 10 else float(np.mean(losses[:10]))
            best = min(best, now)
            if len(losses) > 10 and now > best + 2 * max(start - best, abs(start)):
                return losses, True
        return losses, len(losses) == len(rates)

    # --- the short trainings ------------------------------------------------------------------------------------------

    def _rounds(self, first, highest, start):
        """(rates, losses, steps of each) of the last round that was completed."""
        rates = [r for r in first * SPACING ** np.arange(-4.0, 5.0) if r <= highest]
        found, limit = ([], [], 0), math.inf
        for length in LENGTHS:
            # The present rate takes part in each round: the verdict on it must not be what the budget leaves out.
            present = self._round([self.present] if self.present > 0 else [], length, {})
            reached = None if present is None else self._round(rates, length, {})
            if reached is None:
                break
            self.present_loss = present.get(self.present)
            # A best rate at the end of the row: it goes on there. Not beyond a rate that broke.
            while np.isfinite(list(reached.values())).any():
                rates = sorted(reached)
                losses = [reached[rate] for rate in rates]
                best = int(np.nanargmin(losses))
                more = []
                if best <= 1:
                    more = [rates[0] / SPACING, rates[0] / SPACING**2]
                elif best == len(rates) - 1 and rates[-1] * SPACING <= min(highest, limit):
                    more = [rates[-1] * SPACING]
                if not more or len(rates) > 24:
                    break
                further = self._round(more, length, reached)
                if further is None:
                    return rates, losses, length
                reached = further
            if not np.isfinite(list(reached.values())).any():
                break
            found = (rates, losses, length)
            limit = min([limit, *(r for r in rates if not math.isfinite(reached[r]))])
            rates = _survivors(rates, losses, start)
        return found

    def _refined(self, tried, reached, length, highest, tolerance):
        """`tried` and `reached`, around the best with rates in between, a mean over orders; and which these are.

        From one order of the batches to the next the loss at the best rates jumps by tens of per cent.
        """
        found, best = dict(zip(tried, reached, strict=True)), tried[int(np.nanargmin(reached))]
        about = np.array(tried)[_rates.basin(np.array(reached), tolerance)]
        if about[-1] > WIDE * about[0] or length < LENGTHS[-1]:
            return tried, reached, tried
        near = [next((r for r in tried if math.isclose(r, best * each, rel_tol=1e-6)), best * each) for each in FINE]
        broken = min((r for r in tried if r > best and not math.isfinite(found[r])), default=math.inf)
        near = [rate for rate in near if rate <= highest and rate < broken]
        first = self._round([rate for rate in near if rate not in found], length, found)
        if first is None:
            return tried, reached, tried
        orders = [first]
        for number in range(1, ORDERS):
            more = self._round(near, length, {}, self.seed + number)
            if more is None:
                break
            orders.append(more)
        averages = {rate: sum(reached[rate] for reached in orders) / len(orders) for rate in near}
        if not np.isfinite(list(averages.values())).any():
            return tried, reached, tried
        found = {**first, **averages}
        return sorted(found), [found[rate] for rate in sorted(found)], near

    def _round(self, rates, length, reached, seed=None):
        """`reached` and the losses that trainings at `rates` reach; None if the budget does not last."""
        reached = dict(reached)
        for rate in rates:
            losses = self._train(rate, length, self.seed if seed is None else seed)
            if len(losses) < length and math.isfinite(losses[-1] if losses else 0.0):
                return None
            reached[rate] = float(np.mean(losses[-max(1, length // 4) :]))
        return reached

    def _train(self, rate, length, seed):
        """The losses of a training, with a NaN for the step that broke it; fewer than `length` at the budget's end."""
        self.loan.reset()
        self.loan.learning_rate = float(rate)
        losses, batches = [], self.data.batches(self.batch_size, seed)
        for _ in self.budget.steps(length):
            loss = self.loan.step(*next(batches))
            losses.append(loss if math.isfinite(loss) else math.nan)
            if not math.isfinite(loss):
                break
        return losses

    # --- what it means ------------------------------------------------------------------------------------------------

    def _judge(self, suggestion, safe, best, start, length):
        if not self.present > 0:
            return None, []
        if suggestion / SPACING <= self.present <= safe:
            return "fine", []
        loss = self.present_loss
        made = _rates.progress(loss, best, start)
        if made >= LITTLE or suggestion / FAR < self.present < suggestion:
            return "fine", []
        name, word = ("too_low", "too low") if self.present < suggestion else ("too_high", "too high")
        what = "breaks the training" if math.isnan(loss) else f"reaches a loss of {loss:.3g} in {length} steps"
        text = (
            f"The learning rate is {word}: {self.present:.3g} {what}, from {start:.3g}; rates around {suggestion:.2g} "
            f"reach {best:.3g}. Set it to {suggestion:.2g}, for example with `.apply()`."
        )
        evidence = {"rate": self.present, "loss": loss, "best_loss": best, "start_loss": start}
        return word, [Finding(name, text, evidence=evidence)]

    def _nothing(self, rates, losses, finding, tried=((), (), 0)):
        return self._result(None, None, None, None, (rates, losses), tried, [finding])

    def _result(self, suggestion, safe, steepest, verdict, sweep, tried, findings):
        rates, losses = sweep
        return dict(
            suggestion=suggestion,
            safe_maximum=safe,
            steepest=steepest,
            present=self.present,
            verdict=verdict,
            rates=[float(r) for r in rates[: len(losses)]],
            losses=[float(each) for each in losses],
            tried=[float(r) for r in tried[0]],
            reached=[float(each) for each in tried[1]],
            length=tried[2],
            findings=findings,
            model=self.loan.model,
        )


def _tolerance(best, start):
    """How much above the best loss is "about as good"."""
    return max(0.05 * abs(best), 0.005 * (start - best), 1e-12)


def _survivors(rates, losses, start):
    """The rates that may still turn out the best in a longer training: the lower ones need longer, so they get more."""
    best = int(np.nanargmin(losses))
    kept = [
        rate
        for i, (rate, loss) in enumerate(zip(rates, losses, strict=True))
        if abs(i - best) <= 1 or _rates.progress(loss, losses[best], start) >= (0.8 if i < best else 0.95)
    ]
    return kept


NOT_FINITE = (
    "The loss is not finite with the first batch, at any rate. Look for the cause with NaNGuard or overfit_one_batch."
)
_SHORT = Finding(
    "short_budget",
    "The budget was over before the short trainings: this rests on the range test alone. Give it more `seconds`.",
    is_fault=False,
)


def _does_not_learn(start, best):
    text = (
        f"The loss falls at no rate: {start:.4g} before training, {best:.4g} at the best rate. The rate is not what is "
        "wrong, or it has already learned this. Look with overfit_one_batch whether the model can learn at all, and "
        "with check_inputs at the data."
    )
    return Finding("does_not_learn", text, evidence={"start_loss": start, "best_loss": best})
