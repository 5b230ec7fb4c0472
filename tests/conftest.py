"""What all tests share: the backend (`--backend` or KERAS_BACKEND), virtual devices, and a fresh random state.

The environment is set before Keras is imported, because Keras and JAX read it once, at import.
"""

import gc
import os
import tempfile

import pytest

BACKENDS = ("tensorflow", "jax", "torch")
TF_DEVICES = 2
JAX_DEVICES = 4

_compiled = tempfile.TemporaryDirectory(prefix="tf_tricks_jax_")


def pytest_addoption(parser):
    parser.addoption("--backend", choices=BACKENDS, help="Keras backend of this run, instead of KERAS_BACKEND")


def pytest_configure(config):
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    backend = config.getoption("--backend")
    if backend:
        os.environ["KERAS_BACKEND"] = backend
    flags = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={JAX_DEVICES}".strip()

    import keras

    # The million objects of a backend's modules live as long as the tests: no collection has to look at them again.
    gc.collect()
    gc.freeze()
    # The models of all tests before make a full collection take seconds: one for two million new objects, not 70,000.
    gc.set_threshold(10_000, 20, 10)
    if keras.backend.backend() == "torch" and "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)  # a core for each of pytest's processes: threads of several wait for one another
    if keras.backend.backend() == "tensorflow":
        _split_the_cpu()
    if keras.backend.backend() == "jax":
        _keep_compiled_code()


def pytest_collection_modifyitems(items):
    """Run what knows nothing of the backend on one of them: Torch, which starts the quickest and compiles nothing."""
    import keras

    if keras.backend.backend() == "torch":
        return
    skip = pytest.mark.skip(reason="the same code on every backend: runs on Torch")
    for item in items:
        if item.get_closest_marker("any_backend"):
            item.add_marker(skip)


def pytest_report_header():
    import keras

    return f"keras {keras.__version__}, backend {keras.backend.backend()}"


def _keep_compiled_code():
    """Let equal models of several tests share what XLA compiled; tracing them still takes place."""
    import jax

    jax.config.update("jax_compilation_cache_dir", _compiled.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _split_the_cpu():
    """Show TensorFlow two CPU devices; must run before TensorFlow uses one. Ordinary code stays on the first."""
    import tensorflow as tf

    logical = [tf.config.LogicalDeviceConfiguration() for _ in range(TF_DEVICES)]
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], logical)


@pytest.fixture(autouse=True)
def fresh_random_state():
    """Seed Python, NumPy and Keras, and give back the global dtype policy if a test changed it."""
    import keras

    policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="session")
def backend():
    """Name of the Keras backend of this run."""
    import keras

    return keras.backend.backend()


@pytest.fixture(scope="session")
def mirrored_strategy(backend):
    """A `MirroredStrategy` over two virtual CPU devices; build the model under `mirrored_strategy.scope()`.

    One for the session: a second one in the same process mixes up its collectives with those of the first.
    """
    if backend != "tensorflow":
        pytest.skip("tf.distribute belongs to the TensorFlow backend")
    import tensorflow as tf

    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(TF_DEVICES)])


@pytest.fixture
def data_parallel(backend):
    """A `DataParallel` over four virtual CPU devices; build and fit the model under `data_parallel.scope()`."""
    if backend != "jax":
        pytest.skip("keras.distribution.DataParallel is tested on the JAX backend")
    import keras

    before = keras.distribution.distribution()
    yield keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu")[:JAX_DEVICES])
    keras.distribution.set_distribution(before)
