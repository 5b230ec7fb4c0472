"""What `fit_hooks/freezing.py` takes for granted about the inside of Keras, each checked on Keras alone."""

import keras
import numpy as np
from keras import layers, ops

from tests.fit_hooks.assumptions import array, assumes
from tf_tricks._backend import BACKEND


@assumes("Layer._trainable")
def test_a_layer_reads_its_flag_where_its_variables_do_not():
    layer = layers.BatchNormalization()
    x = np.random.default_rng(0).normal(5.0, 3.0, (8, 2)).astype("float32")
    layer.build(x.shape)
    object.__setattr__(layer, "_trainable", False)
    assert not layer.trainable and all(v.trainable for v in (layer.gamma, layer.beta)), (
        "fit_hooks/freezing.py: `Layer.trainable` no longer reads `_trainable`: frozen batch normalisation moves its "
        "statistics under GradualUnfreezing"
    )
    y = array(layer(x, training=True))
    np.testing.assert_allclose(
        y,
        x / np.sqrt(1.001),
        rtol=1e-5,
        err_msg="fit_hooks/freezing.py: batch normalisation with `trainable=False` no longer runs in inference mode",
    )
    np.testing.assert_array_equal(array(layer.moving_mean), [0, 0])


@assumes("Optimizer._get_variable_index")
def test_the_index_of_a_variable_is_its_place_in_build():
    variables = [keras.Variable(np.zeros(2, "float32"), name=name) for name in "ab"]
    optimizer = keras.optimizers.Adam()
    optimizer.build(variables)
    natives = [v.value for v in variables] if BACKEND == "tensorflow" else variables
    assert [optimizer._get_variable_index(v) for v in natives] == [0, 1], (
        "fit_hooks/freezing.py: `_get_variable_index` no longer gives a variable's place: GradualUnfreezing freezes "
        "other weights than it was told to"
    )


@assumes("Optimizer._backend_update_step")
def test_an_update_of_some_variables_leaves_the_others_alone():
    variables = [keras.Variable(np.zeros(2, "float32"), name=name) for name in "ab"]
    optimizer, calls = keras.optimizers.Adam(0.1), []

    class Watched(type(optimizer)):
        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            calls.append(len(grads))
            super()._backend_update_step(grads, trainable_variables, learning_rate)

    optimizer.build(variables)
    object.__setattr__(optimizer, "__class__", Watched)
    optimizer.apply([ops.ones(2)], variables[1:])
    assert calls == [1] and array(variables[0]).tolist() == [0, 0] and array(variables[1])[0] < -0.09, (
        "fit_hooks/freezing.py: `apply` no longer updates a part of the variables through `_backend_update_step`: "
        "GradualUnfreezing gives new weights the step size of old ones on Torch"
    )


def test_update_rules_count_steps_by_the_public_property():
    variables = [keras.Variable(np.zeros(2, "float32"))]
    optimizer = keras.optimizers.Adam(0.1)

    class Counted(type(optimizer)):
        @property
        def iterations(self):
            return super().iterations - 1000

    optimizer.build(variables)
    optimizer.iterations.assign(1000)
    object.__setattr__(optimizer, "__class__", Counted)
    optimizer.apply([ops.ones(2)], variables)
    np.testing.assert_allclose(
        array(variables[0]),
        [-0.1, -0.1],
        rtol=1e-4,
        err_msg="fit_hooks/freezing.py: Adam no longer asks `iterations` how many steps it took: the first steps of "
        "unfrozen weights are several times too large under GradualUnfreezing",
    )
