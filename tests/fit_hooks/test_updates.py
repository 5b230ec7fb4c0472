import keras
import numpy as np
import pytest
from keras import ops

from tf_tricks.fit_hooks import updates


def variables():
    return [keras.Variable([1.0, 2.0]), keras.Variable([[3.0]])]


@pytest.mark.parametrize("keep", [True, False])
def test_restore_unless_gives_old_values_back(keep, backend):
    mine = variables()
    kept = updates.read(mine)
    for variable in mine:
        variable.assign(variable * float("nan"))
    if backend == "jax":  # its state goes in and out, so it picks one of two
        got = updates.select(ops.convert_to_tensor(keep), [variable.value for variable in mine], kept)
    else:
        updates.restore_unless(ops.convert_to_tensor(keep), mine, kept)
        got = mine
    got = [ops.convert_to_numpy(value) for value in got]
    expected = [np.array([np.nan, np.nan]), np.array([[np.nan]])] if keep else [np.array([1.0, 2.0]), np.array([[3.0]])]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_read_is_not_changed_by_a_later_assignment():
    mine = variables()
    kept = updates.read(mine)
    for variable in mine:
        variable.assign_add(ops.ones(variable.shape))
    np.testing.assert_array_equal(ops.convert_to_numpy(kept[0]), [1.0, 2.0])


@pytest.mark.parametrize("good", [True, False])
def test_torch_select_path_of_a_gpu_equals_the_branch_of_the_cpu(good, backend):
    if backend != "torch":
        pytest.skip("the path belongs to the Torch backend")
    results = []
    for run in (updates.run_if, updates._torch_run_and_undo):
        mine = variables()
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(mine)
        gradient = 1.0 if good else float("nan")
        grads = [ops.full(variable.shape, gradient) for variable in mine]
        run(ops.convert_to_tensor(good), optimizer.apply, grads, mine, optimizer)
        results.append([ops.convert_to_numpy(variable).copy() for variable in [*mine, *optimizer.variables]])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (int(optimizer.iterations) == 1) == good


def test_copies_hold_the_values_at_their_time_whatever_memory_they_are_in(backend):
    if backend == "jax":
        pytest.skip("its state goes in and out: nothing to copy")
    mine, kept = variables(), []
    for factor in (1.0, 3.0):  # the second time in the memory of the first
        before = updates.copies(mine, kept)
        for variable in mine:
            variable.assign_add(factor * ops.ones(variable.shape))
        moved = updates.differences(updates.values(mine), before)
        for each in moved:
            np.testing.assert_array_equal(ops.convert_to_numpy(each) ** 2, np.full(each.shape, factor**2))
