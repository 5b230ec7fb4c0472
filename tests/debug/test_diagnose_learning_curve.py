"""Every rule on a curve that has the fault, and on a healthy twin that must stay silent; formats; real curves."""

import keras
import numpy as np
import pytest

from tf_tricks.debug import diagnose_learning_curve
from tf_tricks.debug._curve import decline_to_come, noise, running_median

N = 60
T = np.arange(N)
SEEDS = range(5)


def jitter(n=N, size=0.01, seed=0):
    return 1 + size * np.random.default_rng(seed).normal(size=n)


def falling(pace=8.0, floor=0.2, n=N, start=2.0):
    return floor + start * np.exp(-np.arange(n) / pace)


def healthy(seed):
    return {"loss": falling() * jitter(seed=seed), "val_loss": (falling() + 0.03) * jitter(seed=seed + 100)}


def names(logs, **kwargs):
    return [finding.name for finding in diagnose_learning_curve(logs, **kwargs).findings]


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_noise_is_the_stddev_about_any_line_and_ignores_jumps():
    values = 5 - 0.3 * np.arange(4000) + np.random.default_rng(0).normal(0, 0.2, 4000)
    values[::200] += 50
    assert noise(values) == pytest.approx(0.2, rel=0.06)
    assert noise(np.arange(10.0)) == pytest.approx(0, abs=1e-12)


def test_running_median_leaves_a_line_and_removes_a_spike():
    line = np.arange(20.0)
    spiked = line.copy()
    spiked[9] = 100
    np.testing.assert_allclose(running_median(line)[1:-1], line[1:-1])
    assert running_median(spiked)[9] == 10


@pytest.mark.parametrize("pace", [10, 15, 25])
def test_decline_to_come_of_an_exponential_is_what_is_left_of_it(pace):
    values = np.exp(-T / pace)
    last, come = decline_to_come(values)
    left = np.exp(-(N - 1) / pace)
    assert come == pytest.approx(left, rel=0.3)
    assert last == pytest.approx(values[-16] - values[-1], rel=0.15)


# --- faults and healthy twins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [12, 30, 60, 300])
def test_a_healthy_curve_stays_silent(n, seed):
    pace = n / 7
    loss, val = falling(pace, n=n) * jitter(n, seed=seed), (falling(pace, n=n) + 0.03) * jitter(n, seed=seed + 100)
    for logs in ({"loss": loss}, {"loss": loss, "val_loss": val}):
        result = diagnose_learning_curve(logs)
        assert result.findings == [], str(result)


def test_nan_is_found_at_its_epoch():
    logs = healthy(0)
    logs["loss"][17:] = np.nan
    finding = diagnose_learning_curve(logs).findings[0]
    assert (finding.name, finding.evidence["epoch"]) == ("diverged", 17)
    logs = {**healthy(0), "val_loss": np.where(T < 9, 1.0, np.nan)}
    assert "validation loss is nan at epoch 9" in str(diagnose_learning_curve(logs))


def test_divergence_is_dated_from_where_the_loss_began_to_rise():
    loss = np.where(T < 30, falling(), falling()[30] * 1.3 ** (T - 30.0))
    result = diagnose_learning_curve({"loss": loss * jitter()})
    assert result.findings[0].name == "diverged"
    assert 28 <= result.findings[0].evidence["epoch"] <= 38
    wave = falling() * (1 + 0.3 * (T > 50))  # a rise that keeps most of what was gained
    assert "diverged" not in names({"loss": wave * jitter()})


@pytest.mark.parametrize("seed", SEEDS)
def test_overfitting_and_since_when(seed):
    val = falling() + 0.02 * np.maximum(0, T - 25)
    loss = falling(14, 0.01) * jitter(seed=seed)
    result = diagnose_learning_curve({"loss": loss, "val_loss": val * jitter(seed=9 + seed)})
    finding = result.named("overfitting")
    lowest = int(np.argmin(val))
    assert finding is not None and abs(finding.evidence["epoch"] - lowest) <= 4
    assert abs(result.best_epoch - lowest) <= 4
    assert finding.evidence["end"] == pytest.approx(val[-3], rel=0.05)
    # Validation and training rise together: not overfitting.
    together = 1 + 0.02 * np.maximum(0, T - 25)
    assert "overfitting" not in names({"loss": falling() * together, "val_loss": (falling() + 0.02) * together})


def test_a_growing_gap_without_a_rise_is_a_remark():
    val = falling(5, 0.5)
    result = diagnose_learning_curve({"loss": falling(12, 0.001) * jitter(), "val_loss": val * jitter(seed=1)})
    assert result.named("generalization_gap") is not None and result.named("overfitting") is None
    assert not result.named("generalization_gap").is_fault


def test_underfitting_and_what_clears_of_it():
    flat = 2.30 - 0.05 * (1 - np.exp(-T / 5))
    both = {"loss": flat * jitter(size=0.002), "val_loss": flat * jitter(size=0.002, seed=1)}
    finding = diagnose_learning_curve(both).findings[0]
    assert finding.name == "underfitting" and not finding.is_fault
    assert finding.evidence["start"] == pytest.approx(2.3, rel=0.01)
    assert finding.evidence["end"] == pytest.approx(2.25, rel=0.01)
    assert "underfitting" not in names({**both, "accuracy": np.full(N, 0.97)})
    assert "underfitting" in names({**both, "accuracy": np.full(N, 0.12)})
    assert "underfitting" not in names(both, baseline=50.0)
    learned = {"loss": falling(2, 0.8, start=1.5)}
    assert "underfitting" not in names(learned) and "underfitting" in names(learned, baseline=1.0)
    assert diagnose_learning_curve(learned, baseline=1.0).named("underfitting").is_fault


def test_a_plateau_that_the_first_epoch_came_to_is_no_fault():
    for seed in SEEDS:
        loss = (0.3 + 0.05 * np.exp(-np.arange(12.0))) * jitter(12, seed=seed)
        logs = {"loss": loss, "val_loss": (loss + 0.02) * jitter(12, 0.02, seed), "accuracy": np.full(12, 0.88)}
        assert not diagnose_learning_curve(logs).named("underfitting").is_fault


@pytest.mark.parametrize("seed", SEEDS)
def test_not_converged(seed):
    short = falling(pace=30)
    val = (short + 0.03) * jitter(seed=50 + seed)
    result = diagnose_learning_curve({"loss": short * jitter(seed=seed), "val_loss": val})
    finding = result.named("not_converged")
    assert finding is not None and not result.passed
    left = 2 * np.exp(-(N - 1) / 30)
    assert left / 3 < finding.evidence["to_come"] < 3 * left
    assert "not_converged" not in names(healthy(seed))


def test_not_converged_is_no_matter_when_the_loss_is_a_thousandth_of_its_start():
    assert "not_converged" not in names({"loss": np.exp(-T / 5.0)})
    assert "not_converged" in names({"loss": np.exp(-T / 20.0)})


def test_not_converged_is_silent_where_a_schedule_is_over():
    loss = np.exp(-T / 20.0)
    cosine = 0.5 * (1 + np.cos(np.pi * T / T[-1]))
    assert "not_converged" not in names({"loss": loss, "learning_rate": cosine})
    assert "not_converged" in names({"loss": loss, "learning_rate": np.full(len(T), 0.1)})


def test_plateau_between_two_descents_and_at_the_end():
    steps = 1.0 / (1 + np.exp((T - 8) / 1.5)) + 1.0 / (1 + np.exp((T - 45) / 1.5)) + 0.2
    finding = diagnose_learning_curve({"loss": steps * jitter(size=0.002)}).named("plateau")
    assert 10 <= finding.evidence["from"] <= 20 and 34 <= finding.evidence["to"] <= 43 and not finding.is_fault
    finding = diagnose_learning_curve({"loss": falling(3) * jitter(size=0.002)}).named("plateau")
    assert finding.evidence["to"] == N - 1 and 8 <= finding.evidence["from"] <= 25
    assert "plateau" not in names(healthy(0))


@pytest.mark.parametrize("seed", SEEDS)
def test_noisy_validation(seed):
    logs = healthy(seed)
    logs["val_loss"] = (falling() + 0.1) * jitter(size=0.3, seed=seed)
    finding = diagnose_learning_curve(logs).named("noisy_validation")
    assert finding is not None and finding.evidence["noise"] == pytest.approx(0.3 * finding.evidence["level"], rel=0.6)


def test_validation_better_counts_the_lag_of_the_training_loss():
    end_of_epoch = falling(8)
    lagging = {"loss": 0.2 + 2 * np.exp(-(T - 0.5) / 8), "val_loss": end_of_epoch}
    assert "validation_better" not in names(lagging)
    finding = diagnose_learning_curve({"loss": 1.4 * end_of_epoch, "val_loss": end_of_epoch}).named("validation_better")
    assert finding.evidence["share"] == 1 and not finding.is_fault


@pytest.mark.parametrize("seed", SEEDS)
def test_rate_too_high_oscillates_or_jumps(seed):
    loss = falling()
    loss[30:] = (loss[30:] + 0.3) * jitter(N - 30, size=0.35, seed=seed)
    finding = diagnose_learning_curve({"loss": loss}).named("learning_rate_too_high")
    assert finding is not None and finding.is_fault and 14 <= finding.evidence["epoch"] <= 46
    logs = healthy(seed)
    logs["loss"][40:44] += [3.0, 2.0, 1.0, 0.5]
    logs["learning_rate"] = np.full(N, 0.1)
    finding = diagnose_learning_curve(logs).named("learning_rate_too_high")
    assert finding.evidence["epoch"] == 40 and "rate 0.1" in finding.text


def test_a_drop_of_the_rate_that_helped_at_once_is_a_remark():
    rate = np.where(T < 40, 0.1, 0.01)
    loss = np.where(T < 40, falling(5, 0.5), 0.3) * jitter()
    finding = diagnose_learning_curve({"loss": loss, "learning_rate": rate}).named("learning_rate_too_high")
    assert finding.evidence["epoch"] == 40 and not finding.is_fault
    loss = falling(5, 0.5) * jitter()
    assert "learning_rate_too_high" not in names({"loss": loss, "learning_rate": rate})


@pytest.mark.parametrize("seed", SEEDS)
def test_rate_too_low_is_a_straight_line(seed):
    line = (2.0 - 0.01 * T) * jitter(size=0.003, seed=seed)
    result = diagnose_learning_curve({"loss": line, "lr": np.full(N, 1e-6)})
    assert result.named("learning_rate_too_low") is not None and result.named("not_converged") is None, str(result)
    assert "rate 1e-06" in result.named("learning_rate_too_low").text
    assert "learning_rate_too_low" not in names({"loss": falling(20) * jitter(size=0.003, seed=seed)})


@pytest.mark.parametrize("name", ["learning_rate", "lr"])
def test_a_rate_that_decays_too_fast_freezes_the_loss(name):
    rate = 0.1 * 0.7**T
    progress = np.cumsum(rate) / 0.1  # of a descent that depends on the sum of the rates alone
    frozen = {"loss": (0.05 + 2 * np.exp(-progress / 4)) * jitter(), name: rate}
    finding = diagnose_learning_curve(frozen).named("learning_rate_too_low")
    assert finding.evidence["epoch"] == 7 and "decays too fast" in finding.text
    slow = 0.1 * 0.95**T
    fine = {"loss": (0.05 + 2 * np.exp(-np.cumsum(slow) / 0.4)) * jitter(), name: slow}
    assert "learning_rate_too_low" not in names(fine)


def test_too_few_epochs_say_little():
    assert names({"loss": [2.0, 1.0, 0.8]}) == ["too_short"]
    assert names({"loss": [2.0, 1.0, 80.0]}) == ["diverged"]
    assert names({"loss": [np.nan]}) == ["diverged"]


def test_a_loss_that_may_be_negative_is_judged_against_its_range():
    logs = {name: values - 1.0 for name, values in healthy(0).items()}
    assert [name for name in names(logs) if name != "plateau"] == []
    val = falling() - 1 + 0.03 * np.maximum(0, T - 25)
    assert "overfitting" in names({"loss": falling(14, 0.01) - 1, "val_loss": val})


# --- formats ----------------------------------------------------------------------------------------------------------


def fitted(tmp_path, epochs=12, rate=0.05, **kwargs):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype("float32")
    y = x @ np.array([[1.0], [2.0], [-1.0]], "float32") + 0.1 * rng.normal(size=(64, 1)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=False)
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv", **kwargs)
    callbacks = [keras.callbacks.LearningRateScheduler(lambda epoch, present: present), logger]
    return model.fit(x, y, validation_split=0.25, epochs=epochs, batch_size=16, verbose=0, callbacks=callbacks)


def test_history_dict_and_file_say_the_same_of_a_real_run(tmp_path):
    history = fitted(tmp_path, separator=";")
    results = [diagnose_learning_curve(each) for each in (history, history.history, tmp_path / "log.csv")]
    for result in results:
        assert result.passed, str(result)
        np.testing.assert_allclose(result.loss, history.history["loss"], rtol=1e-6)
        np.testing.assert_allclose(result.val_loss, history.history["val_loss"], rtol=1e-6)
        np.testing.assert_allclose(result.learning_rate, 12 * [0.05], rtol=1e-6)
        assert result.epochs == list(range(12)) and str(result) == str(results[0])


@pytest.mark.parametrize(("rate", "name"), [(30.0, "diverged"), (1e-4, "learning_rate_too_low")])
def test_a_real_run_at_a_bad_rate(tmp_path, rate, name):
    assert diagnose_learning_curve(fitted(tmp_path, rate=rate)).findings[0].name == name


def test_epochs_without_validation(tmp_path):
    logs = healthy(0)
    sparse = diagnose_learning_curve({"loss": logs["loss"], "val_loss": logs["val_loss"][2::3]})
    assert sparse.val_epochs == list(range(2, N, 3)) and sparse.passed and not sparse.named("validation_epochs")
    text = "epoch,loss,val_loss\n" + "".join(f"{i},{2 - i / 10},{'NA' if i % 2 else 1.5}\n" for i in range(8))
    (tmp_path / "log.csv").write_text(text)
    assert diagnose_learning_curve(str(tmp_path / "log.csv")).val_epochs == [0, 2, 4, 6]


def test_epochs_that_were_validated_by_a_frequency_that_is_given_or_guessed():
    logs = {"loss": np.linspace(2, 1, 99), "val_loss": np.linspace(2, 1.1, 9)}
    tens = list(range(9, 99, 10))
    guessed = diagnose_learning_curve(logs)
    assert guessed.val_epochs == tens and "10 or 11: 10 is assumed" in guessed.named("validation_epochs").text
    given = diagnose_learning_curve(logs, validation_freq=11)
    assert given.val_epochs == list(range(10, 99, 11)) and given.named("validation_epochs") is None
    assert diagnose_learning_curve(logs, validation_freq=[9, *range(20, 100, 10)]).val_epochs == [8, *tens[1:]]
    # A run that went on from epoch 5 is validated at 9, 19, ...: fit counts from the first of all epochs.
    later = {"epoch": np.arange(5, 25), "loss": np.linspace(2, 1, 20), "val_loss": [1.5, 1.4]}
    assert diagnose_learning_curve(later, validation_freq=10).val_epochs == [9, 19]
    with pytest.raises(ValueError, match="`validation_freq` must give 9 of 99 epochs.*which gives 19"):
        diagnose_learning_curve(logs, validation_freq=5)


def test_text_fits_a_screen_and_the_picture_is_drawn(tmp_path):
    result = diagnose_learning_curve({"loss": falling(14, 0.01), "val_loss": falling() + 0.02 * np.maximum(0, T - 25)})
    lines = str(result).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    result.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_mistakes(tmp_path):
    with pytest.raises(TypeError, match=r"`history` must be what `fit` returned.*Received: history=3"):
        diagnose_learning_curve(3)
    with pytest.raises(ValueError, match=r"`monitor` must be one of loss. Received: monitor='mae'"):
        diagnose_learning_curve({"loss": [1.0]}, monitor="mae")
    with pytest.raises(TypeError, match="`monitor` must be a str"):
        diagnose_learning_curve({"loss": [1.0]}, monitor=None)
    with pytest.raises(ValueError, match=r"`baseline` must lie in \(0, inf\)"):
        diagnose_learning_curve({"loss": [1.0]}, baseline=-1.0)
    with pytest.raises(TypeError, match="`history` must hold numbers under 'loss'"):
        diagnose_learning_curve({"loss": ["a"]})
    with pytest.raises(ValueError, match="`history` must have no more values of 'val_loss' than epochs"):
        diagnose_learning_curve({"loss": [1.0], "val_loss": [1.0, 2.0]})
    (tmp_path / "empty.csv").write_text("epoch,loss\n")
    with pytest.raises(ValueError, match="a heading and a line for each epoch"):
        diagnose_learning_curve(tmp_path / "empty.csv")
