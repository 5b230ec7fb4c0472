import types

import numpy as np
import pytest

from tf_tricks.callbacks import gradient_norm_statistics as statistics

pytestmark = pytest.mark.any_backend

NAN, INF = float("nan"), float("inf")


def variables(*paths):
    return [types.SimpleNamespace(path=path) for path in paths]


def optimizer(**kwargs):
    return types.SimpleNamespace(
        **{"clipnorm": None, "global_clipnorm": None, "clipvalue": None, "gradient_accumulation_steps": None, **kwargs}
    )


@pytest.mark.parametrize(
    ("paths", "per", "expected"),
    [
        (["net/a/kernel", "net/a/bias", "net/b/kernel"], "layer", {"a": [0, 1], "b": [2]}),
        (["net/a/kernel", "net/a/bias"], "variable", {"a/kernel": [0], "a/bias": [1]}),
        (["net/a/kernel"], "global", {}),
        (["block/query/kernel", "block/key/kernel"], "layer", {"block/query": [0], "block/key": [1]}),
        (["net/scale", "net/a/kernel"], "layer", {"net": [0], "a": [1]}),  # a weight of the model's own
        (["a/kernel", "a/bias", "a/kernel", "a/bias"], "layer", {"a": [0, 1], "a_1": [2, 3]}),
        (["a/kernel", "a/kernel", "a/kernel"], "variable", {"a/kernel": [0], "a/kernel_1": [1], "a/kernel_2": [2]}),
        (["global/kernel", "global/bias"], "layer", {"global_1": [0, 1]}),
    ],
)
def test_groups(paths, per, expected):
    assert dict(statistics.groups(variables(*paths), "net", per)) == expected


def test_table_is_the_norm_over_each_group():
    norms = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 2.0], [1e30, 1e30, 0.0], [NAN, 1.0, 2.0], [1.0, INF, 2.0]])
    found = statistics.table(norms, [("a", [0, 1]), ("b", [2])])
    expected = [[13, 5, 12], [2, 0, 2], [2**0.5 * 1e30, 2**0.5 * 1e30, 0], [NAN, NAN, 2], [INF, INF, 2]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_update_ratio_and_steps_that_only_accumulate():
    columns = {
        "grad_norm": np.array([[1.0, 1.0]] * 3 + [[NAN, 1.0]]),
        "applied_grad_norm": np.array([[NAN, NAN], [2.0, 2.0], [NAN, NAN], [NAN, 1.0]]),
        "weight_norm": np.array([[3.0, 4.0], [3.0, 0.0], [0.0, 0.0], [3.0, 4.0]]),
        "update_norm": np.array([[0.0, 0.0], [0.3, 0.0], [0.0, 0.0], [NAN, 0.4]]),
    }
    assert statistics.only_accumulates(columns).tolist() == [True, False, True, False]
    members = [("a", [0]), ("b", [1])]
    ratio = statistics.tables(columns, members, optimizer(gradient_accumulation_steps=2))["update_ratio"]
    np.testing.assert_allclose(ratio, [[NAN] * 3, [0.1, 0.1, 0.0], [NAN] * 3, [NAN, NAN, 0.1]])
    del columns["applied_grad_norm"]
    ratio = statistics.tables(columns, members, optimizer())["update_ratio"]
    np.testing.assert_allclose(ratio[2], [0, 0, 0])  # a weight of 0 that does not move


def test_means_leave_out_what_has_no_value_and_nothing_else():
    means = statistics.RunningMeans()
    names = ["global", "a"]
    means.add({"grad_norm": np.array([[1.0, 2.0], [INF, INF]])}, {"grad_norm": np.array([True, False])})
    means.add({"grad_norm": np.array([[3.0, NAN]])}, {"grad_norm": np.array([True])})
    found = means.take(["grad_norm", "update_ratio"], names)
    assert found["grad_norm/global"] == 2.0 and np.isnan(found["grad_norm/a"])
    assert np.isnan(found["update_ratio/a"]) and {type(value) for value in found.values()} == {float}
    assert np.isnan(means.take(["grad_norm"], names)["grad_norm/global"])  # begins anew


def look(norms, layers=("first", "last"), size=7):
    """Feed norms a few at a time, as the hook delivers them; returns (step of the delivery, sentence)."""
    watch, found = statistics.Watch(), []
    norms = np.asarray(norms, "float64")
    for start in range(0, len(norms), size):
        steps = np.arange(start, min(start + size, len(norms)))
        found += watch.look(steps, norms[steps], list(layers))
    return found


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_exploding_against_the_running_median(size):
    calm = np.ones((30, 3))
    assert look(calm, size=size) == []
    bumpy = calm.copy()
    bumpy[20] = 100.0  # not more than 100 times
    assert look(bumpy, size=size) == []
    bumpy[25], bumpy[27] = [101.0, 7.0, 100.0], 500.0
    (sentence,) = look(bumpy, size=size)
    assert "explodes at step 25, most of all in `last`: its norm, 101, is 101 times the median" in sentence
    bumpy[22] = [INF, INF, 1.0]
    (sentence,) = look(bumpy, size=size)
    assert "at step 22, most of all in `first`: its norm, inf, compares with the median of the last 22" in sentence
    early = calm.copy()
    early[5] = 1e6  # there is no median yet
    assert look(early, size=size) == []
    forgotten = np.concatenate([np.full((100, 3), 1e-3), np.geomspace(1e-3, 1.0, 400)[:, None] * calm[:1], calm])
    assert look(forgotten, size=size) == []  # the median runs along


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_vanishing_by_the_median_ratio(size):
    def norms(ratio, steps):
        return np.stack([np.ones(steps), np.full(steps, ratio), np.ones(steps)], axis=1)

    assert look(norms(1.1e-3, 50), size=size) == []
    assert look(norms(0.9e-3, 9), size=size) == []
    (sentence,) = look(norms(0.9e-3, 50), size=size)
    assert "norm in `first` is 0.0009 of that in `last`" in sentence
    assert look(norms(0.9e-3, 50)[:, :2], layers=["only"], size=size) == []
    assert look(np.full((50, 3), NAN), size=size) == []
    few = norms(1.0, 50)
    few[10:20, 1] = 0.0  # some batches without a gradient are no vanishing one
    assert look(few, size=1) == []
