"""Rules that read a learning curve. Each takes a `Curve` and returns a `Finding` with its numbers, or None."""

import numpy as np

from tf_tricks.debug._curve import FEWEST, decline_to_come, noise, tail_median
from tf_tricks.debug._rate_rules import learning_rate_too_high, learning_rate_too_low
from tf_tricks.debug._result import Finding


def diverged(curve):
    """The loss is not finite, or ends above where it began."""
    n, smooth = len(curve.loss), curve.smooth
    if n < 3:
        return None
    best, end, start = int(np.argmin(smooth)), tail_median(curve.loss), float(curve.loss[0])
    gained = max(start - smooth[best], 0.5 * curve.level(smooth[best]))
    rise = end - smooth[best]
    if rise <= gained or rise < 6 * curve.noise:
        return None
    started = max(0.05 * curve.level(smooth[best]), 3 * curve.noise)
    since = int(np.flatnonzero(smooth <= smooth[best] + min(started, 0.1 * rise))[-1])
    return Finding(
        "diverged",
        f"The training loss diverged: {smooth[best]:.4g} at best (epoch {curve.epoch(best)}), rising since epoch "
        f"{curve.epoch(since)}, {end:.4g} at the end. Lower the learning rate (`find_learning_rate` measures the "
        "safe maximum), or clip the gradients and look for the layer that explodes (`signal_propagation`).",
        evidence={"best": float(smooth[best]), "best_epoch": curve.epoch(best), "epoch": curve.epoch(since)},
    )


def overfitting(curve):
    """The validation loss rises while that of training falls."""
    if len(curve.val) < FEWEST:
        return None
    best, end = int(np.argmin(curve.smooth_val)), tail_median(curve.smooth_val)
    low = float(curve.smooth_val[best])
    train_then, train_end = float(curve.smooth[curve.val_at[best]]), float(curve.smooth[-1])
    rises = end - low > max(0.05 * curve.level(low), 3 * curve.val_noise)
    falls = train_then - train_end > 0.02 * curve.level(train_then)
    if not (rises and falls):
        return None
    epoch = curve.epoch(curve.val_at[best])
    return Finding(
        "overfitting",
        f"Overfitting since epoch {epoch}: the validation loss rose from {low:.4g} to {end:.4g}, while the training "
        f"loss fell from {train_then:.4g} to {train_end:.4g}. Stop there (`EarlyStopping`, restoring the best "
        "weights), augment, regularise, or make the model smaller.",
        evidence={"epoch": epoch, "best": low, "end": end, "loss_then": train_then, "loss_end": train_end},
    )


def generalization_gap(curve):
    """The validation loss stands still while that of training goes on falling."""
    m = len(curve.val)
    if m < 2 * FEWEST or curve.loss.min() <= 0 or overfitting(curve):
        return None
    middle, end = float(curve.smooth_val[m // 2]), tail_median(curve.smooth_val)
    train_then, train_end = float(curve.smooth[curve.val_at[m // 2]]), float(curve.smooth[-1])
    stands = middle - end < 0.02 * middle
    if not (stands and train_end < 0.7 * train_then and end > 2 * train_end):
        return None
    epoch = curve.epoch(curve.val_at[m // 2])
    return Finding(
        "generalization_gap",
        f"Since epoch {epoch} only the training data profits: the training loss fell from {train_then:.4g} to "
        f"{train_end:.4g}, the validation loss stayed at {end:.4g}. More data, augmentation or regularisation helps, "
        "more epochs do not.",
        is_fault=False,
        evidence={"epoch": epoch, "val": end, "loss_then": train_then, "loss_end": train_end},
    )


def underfitting(curve):
    """The training loss has come to rest hardly below where it began, or below the loss of predicting the mean."""
    n = len(curve.loss)
    if n < FEWEST or curve.loss.min() <= 0 or (curve.success or 0) >= 0.9 or learning_rate_too_low(curve):
        return None
    start, end = float(curve.loss[0]), tail_median(curve.loss)
    reference, share = (start, 0.8) if curve.baseline is None else (curve.baseline, 0.7)
    last_third = float(curve.smooth[-max(2, n // 3)]) - end
    flat = last_third < max(0.02 * end, 2 * curve.noise)
    val_end = tail_median(curve.val) if len(curve.val) else end
    if not flat or end < share * reference or val_end > 1.3 * end:
        return None
    # Without `baseline` it may as well have learned all there is in the first epoch: the floor of a loss is not known.
    compared = "in the first epoch" if curve.baseline is None else "for predicting the mean (`baseline`)"
    more = "" if curve.baseline is not None else " If the first epoch had learned all already: `baseline` tells."
    return Finding(
        "underfitting",
        f"Underfitting: the training loss came to rest at {end:.4g}, after {reference:.4g} {compared}; it fell by "
        f"{last_third:.2g} in the last third. See whether the model learns one batch (`overfit_one_batch`) and whether "
        f"labels belong to features (`check_inputs`); then a larger model or less regularisation.{more}",
        is_fault=curve.baseline is not None,
        evidence={"start": start, "end": end, "reference": reference, "last_third": last_third},
    )


def _schedule_is_over(curve):
    """Has a schedule brought the rate down to next to nothing? Then more epochs of it bring nothing."""
    return curve.rate is not None and 0 <= float(curve.rate[-1]) < 0.05 * float(np.max(curve.rate))


def not_converged(curve):
    """Another half of the epochs would lower the loss noticeably."""
    on_val = len(curve.val) >= 2 * FEWEST
    series = curve.val if on_val else curve.loss
    if len(series) < 2 * FEWEST or overfitting(curve) or learning_rate_too_low(curve) or _schedule_is_over(curve):
        return None
    low, sigma = tail_median(series), noise(series)
    done = curve.loss.min() > 0 and low < 1e-3 * series[0]
    if done or (not on_val and (curve.success or 0) > 0.999):
        return None
    last, come = decline_to_come(series)
    chance = sigma * np.sqrt(12 / (len(series) // 4))  # stddev of a line's fall over a quarter of nothing but noise
    if last < 3 * chance or come < 0.05 * curve.level(low) + 2 * chance:
        return None
    name = "validation" if on_val else "training"
    return Finding(
        "not_converged",
        f"Not converged: in the last quarter of the epochs the {name} loss still fell by {last:.3g}, to {low:.4g}; at "
        f"this pace about {come:.2g} more is to come. Train longer.",
        evidence={"last_quarter": last, "to_come": come, "end": low},
    )


def plateau(curve):
    """The training loss stands still for long: between two descents, or for the second half and longer."""
    n, smooth = len(curve.loss), curve.smooth
    total = float(smooth[0] - smooth.min())
    if n < 2 * FEWEST or total < 5 * curve.noise or total <= 0 or underfitting(curve):
        return None
    tolerance = max(0.01 * total, 2 * curve.noise)
    width = max(FEWEST, n // 5)
    spans = np.ptp(np.lib.stride_tricks.sliding_window_view(smooth, width), axis=1)
    for start in np.flatnonzero(spans <= tolerance):
        away = np.flatnonzero(np.abs(smooth[start:] - smooth[start]) > tolerance)
        stop = n - 1 if not len(away) else start + int(away[0]) - 1
        after = float(smooth[start] - smooth[stop:].min())
        if after > max(0.1 * total, 5 * curve.noise) and stop < n - 1:
            return Finding(
                "plateau",
                f"The training loss stood still at {smooth[start]:.4g} from epoch {curve.epoch(start)} to "
                f"{curve.epoch(stop)}, and fell to {smooth[stop:].min():.4g} afterwards: a higher rate or a better "
                "initialisation (`signal_propagation`) shortens the wait.",
                is_fault=False,
                evidence={"from": curve.epoch(start), "to": curve.epoch(stop), "level": float(smooth[start])},
            )
    moving = np.flatnonzero(np.abs(smooth - tail_median(smooth)) > tolerance)
    since = int(moving[-1]) + 1 if len(moving) else 0
    if n - since < max(n / 2, 2 * FEWEST):
        return None
    return Finding(
        "plateau",
        f"Since epoch {curve.epoch(since)} of {n} the training loss has stayed at {smooth[-1]:.4g}. Drop the rate "
        "there "
        "(`FinalLearningRateDrop`, `ReduceLROnPlateau`) or stop earlier.",
        is_fault=False,
        evidence={"from": curve.epoch(since), "to": curve.epoch(n - 1), "level": float(smooth[-1])},
    )


def noisy_validation(curve):
    """The validation loss jumps about, that of training does not."""
    if len(curve.val) < FEWEST + 3:
        return None
    late = slice(len(curve.val) // 3, None)
    sigma, level = noise(curve.val[late]), curve.level(float(np.median(curve.val[late])))
    train = noise(curve.loss[curve.val_at][late])
    if sigma < 0.1 * level or sigma < 3 * train:
        return None
    return Finding(
        "noisy_validation",
        f"The validation loss jumps by {sigma:.2g} from epoch to epoch, {100 * sigma / level:.0f} % of its level "
        f"(training: {train:.2g}). Validate on more samples, average the weights (`SwapEMAWeights`) or lower the rate; "
        "with batch normalisation, lower its `momentum`. One best epoch is luck here.",
        is_fault=False,
        evidence={"noise": sigma, "level": level, "training_noise": train},
    )


def validation_better(curve):
    """The validation loss is below that of training, even when the latter is taken at the end of the epoch."""
    if len(curve.val) < 3:
        return None
    # Keras reports the mean over an epoch: its value at the end lies about between this mean and the next one.
    following = np.append(curve.loss[1:], curve.loss[-1])
    at_end = ((curve.loss + following) / 2)[curve.val_at]
    late = slice(len(curve.val) // 2, None)
    train, val = float(np.median(at_end[late])), float(np.median(curve.val[late]))
    below = float(np.mean(curve.val[late] < at_end[late]))
    if train - val < max(0.05 * curve.level(train), curve.val_noise) or below < 0.8:
        return None
    return Finding(
        "validation_better",
        f"The validation loss ({val:.4g}) is below the training loss ({train:.4g}) in {100 * below:.0f} % of the later "
        "epochs. Dropout, augmentation and penalties count in training only: `model.evaluate` on the training data "
        "tells. Otherwise the validation data is easier, or leaks (`check_inputs` with `validation`).",
        is_fault=False,
        evidence={"loss": train, "val_loss": val, "share": below},
    )


RULES = (
    diverged,
    overfitting,
    underfitting,
    learning_rate_too_high,
    learning_rate_too_low,
    not_converged,
    generalization_gap,
    plateau,
    noisy_validation,
    validation_better,
)
