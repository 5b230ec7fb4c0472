import keras
import numpy as np
import pytest

from tf_tricks.fit_hooks import gradients


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def tensors(arrays):
    return [keras.ops.convert_to_tensor(array, "float32") for array in arrays]


SHAPES = [(3, 4), (7,), (), (2, 1, 5), (1, 1), (2,)]
ARRAYS = [np.random.default_rng(0).normal(size=shape).astype("float32") for shape in SHAPES]


@pytest.mark.parametrize("under_xla", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e30, 1e37, 1e-15])
def test_norms_are_those_of_numpy(size, under_xla):
    arrays = [np.float32(size) * array for array in ARRAYS]
    expected = [np.linalg.norm(array.astype("float64")) for array in arrays]
    np.testing.assert_allclose(numpy(gradients.norms(tensors(arrays), under_xla=under_xla)), expected, rtol=1e-5)
    np.testing.assert_allclose(compiled_norms(tensors(arrays), under_xla), expected, rtol=1e-5)


def compiled_norms(values, under_xla):
    """The norms as the compiled step has them: a compiler may rearrange products."""
    if keras.backend.backend() == "jax":
        import jax

        return numpy(jax.jit(lambda values: gradients.norms(values, under_xla=under_xla))(values))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda values: gradients.norms(values, under_xla=under_xla), jit_compile=under_xla)
        return numpy(compiled(values))
    return numpy(gradients.norms(values, under_xla=under_xla))


@pytest.mark.parametrize("under_xla", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norms_show_what_is_not_finite_and_only_there(bad, under_xla):
    arrays = [np.full((2, 2), 1e30), np.array([1.0, bad, 2.0]), np.ones(3)]
    found = numpy(gradients.norms(tensors(arrays), under_xla=under_xla))
    np.testing.assert_allclose(found[[0, 2]], [2e30, 3**0.5], rtol=1e-5)
    assert np.isnan(found[1]) if np.isnan(bad) else np.isposinf(found[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_norms_of_half_precision_do_not_overflow(dtype):
    x = keras.ops.full((100,), 30000.0, dtype)
    np.testing.assert_allclose(numpy(gradients.norms([x], under_xla=False)), [3e5], rtol=1e-2)


def test_norms_of_nothing():
    assert numpy(gradients.norms([], under_xla=True)).shape == (0,)


def test_repeated_rows_of_an_embedding_are_added_up(backend):
    if backend != "tensorflow":
        pytest.skip("only TensorFlow has IndexedSlices")
    import tensorflow as tf

    slices = tf.IndexedSlices(tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([1, 1]), tf.constant([3, 2]))
    np.testing.assert_array_equal(gradients.dense(slices), [[0, 0], [4, 6], [0, 0]])
    np.testing.assert_allclose(gradients.norms([slices], under_xla=False), [52**0.5], rtol=1e-6)


@pytest.mark.parametrize("vector", [[3.0, 4.0], [3e30, 4e30], [0.0, 0.0], [3e-20, 4e-20]])
def test_global_norm(vector):
    expected = np.linalg.norm(np.array(vector, "float64"))
    found = numpy(gradients.global_norm(keras.ops.convert_to_tensor(vector, "float32")))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_innermost_and_loss_scale():
    inner = keras.optimizers.SGD(loss_scale_factor=4.0)
    assert gradients.innermost(inner) is inner and gradients.loss_scale(inner, read=None) == 4.0
    assert gradients.loss_scale(keras.optimizers.SGD(), read=None) is None
    plain = keras.optimizers.SGD()
    outer = keras.optimizers.LossScaleOptimizer(plain, initial_scale=8.0)
    outer.build([keras.Variable(np.zeros(2, "float32"))])
    assert gradients.innermost(outer) is plain
    assert float(numpy(gradients.loss_scale(outer, keras.ops.convert_to_tensor))) == 8.0


@pytest.mark.parametrize("clipping", [{"clipnorm": 0.7}, {"global_clipnorm": 0.7}, {}], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e30, np.inf, np.nan])
def test_clipped_norms_are_those_after_the_optimizer_of_keras(clipping, size):
    """With plain SGD and a rate of 1 the weights move by what is left of the gradients."""
    grads = [np.full((2, 2), size, "float32"), np.full(3, 0.1, "float32")]
    optimizer = keras.optimizers.SGD(1.0, **clipping)
    variables = [keras.Variable(np.zeros_like(grad)) for grad in grads]
    optimizer.apply(tensors(grads), variables)
    moved = [np.linalg.norm(numpy(variable).astype("float64")) for variable in variables]
    norms = np.array([[np.linalg.norm(grad.astype("float64")) for grad in grads]] * 3)  # three steps
    np.testing.assert_allclose(gradients.clipped_norms(norms, optimizer), [moved] * 3, rtol=1e-5)


def test_gradients_reach_the_weights_through_apply(backend):
    """The hook `gradients` sees what `fit` gives to `Optimizer.apply`, or on JAX to `Optimizer.stateless_apply`."""
    seen = []

    class Watched(keras.optimizers.SGD):
        def apply(self, grads, trainable_variables=None):
            seen.append("apply")
            return super().apply(grads, trainable_variables)

        def stateless_apply(self, optimizer_variables, grads, trainable_variables):
            seen.append("stateless_apply")
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(Watched(), "mse", jit_compile=False)
    model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0)
    expected = "stateless_apply" if backend == "jax" else "apply"
    assert seen and seen[0] == expected, f"fit_hooks.gradients: `fit` no longer calls `Optimizer.{expected}`"
