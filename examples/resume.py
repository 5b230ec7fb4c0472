"""Kill a training run twice, at random steps, start it again each time, and compare it with one that was left alone.

    python examples/resume.py                       # on scikit-learn's digits: no download
    python examples/resume.py --backend jax         # or torch; TensorFlow is still needed, for the tf.data pipeline
    python examples/resume.py --kills 5 --epochs 10

Both runs are processes of their own. What they do is in `train`: the one line that matters is `TrainingCheckpoint`.
It prints the SHA-256 of the weights, of Adam's state and of the History of both; the exit status is 1 if they differ.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time

PIP_EXTRA = {"tensorflow": "cpu", "jax": "jax", "torch": "torch", "safetensors": "checkpoints"}
SEED = 0
BATCH_SIZE = 32
STEPS = 38  # batches in an epoch
SAVE_EVERY = 10  # steps
STEP, RESULT = "step ", "result "  # how a training process reports to this one


def parse_arguments():
    parser = argparse.ArgumentParser(description="Kill a training run, resume it, and compare it with one left alone.")
    parser.add_argument("--backend", choices=["tensorflow", "jax", "torch"], default="tensorflow")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--data-dir", default=None, help="where the data set is kept; by default the usual cache")
    parser.add_argument("--train", metavar="DIRECTORY", help=argparse.SUPPRESS)  # this is a training process
    return parser.parse_args()


def check_installed(backend):
    """End with one sentence if a package is missing."""
    for module in (backend, "tensorflow", "tensorflow_datasets", "sklearn", "safetensors"):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"The example needs {module}: pip install 'tf-tricks[{PIP_EXTRA.get(module, 'examples')}]'")


# --- a training process -------------------------------------------------------------------------------------------


def train(arguments):
    """Train; a process that is killed and started again with the same folder goes on where it was."""
    os.environ["KERAS_BACKEND"] = arguments.backend  # Keras reads it once, when it is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf
    from digits import Digits

    from tf_tricks.callbacks import TrainingCheckpoint

    if arguments.backend != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads the data here: leave the GPU to Keras
    builder = Digits(data_dir=arguments.data_dir)
    builder.download_and_prepare()
    keras.utils.set_random_seed(SEED)  # after that: only the first process prepares, and it draws random numbers
    training, validation = load_data(builder)
    model = build_model()
    epochs = []
    report = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epochs.append(epoch),
        on_train_batch_end=lambda batch, logs: print(f"{STEP}{epochs[-1] * STEPS + batch + 1}", flush=True),
    )
    history = model.fit(
        training,
        validation_data=validation,
        epochs=arguments.epochs,
        callbacks=[
            TrainingCheckpoint(arguments.train, every=SAVE_EVERY),
            keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.05),  # its counter comes back, too
            report,
        ],
        shuffle=False,  # the tf.data pipeline shuffles
        verbose=0,
    ).history
    found = {
        "weights": digest(model.weights),
        "Adam's state": digest(model.optimizer.variables),
        "History": hashlib.sha256(json.dumps(history).encode()).hexdigest(),  # JSON keeps every bit of a float
        "val_accuracy": history["val_accuracy"][-1],
    }
    print(RESULT + json.dumps(found), flush=True)


def load_data(builder):
    training, validation = builder.as_dataset(split=["train[:85%]", "train[85%:]"], as_supervised=True)
    training = training.cache().shuffle(10_000, seed=SEED).batch(BATCH_SIZE, drop_remainder=True)
    augment = build_augmentation()
    training = training.map(lambda image, label: (augment(image), label))
    return training.prefetch(2), validation.batch(256).cache()


def build_augmentation():
    from keras import layers

    options = {"fill_mode": "constant", "seed": SEED}
    return layers.Pipeline([layers.RandomTranslation(0.08, 0.08, **options), layers.RandomRotation(0.02, **options)])


def build_model():
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 16),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    return model


def digest(variables):
    import keras

    found = hashlib.sha256()
    for variable in variables:
        found.update(keras.ops.convert_to_numpy(variable).tobytes())
    return found.hexdigest()


# --- the process that starts, kills and compares ------------------------------------------------------------------


def main(arguments):
    begin = time.perf_counter()
    total = arguments.epochs * STEPS
    kills = sorted(random.sample(range(SAVE_EVERY + 1, total - STEPS // 4), arguments.kills))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        with training(arguments, first) as process:  # at work beside the others
            process.stdout.readline()  # its first step: the data set is prepared now, and need not be by two at once
            for step in kills:
                with training(arguments, second) as victim:
                    follow(victim, kill_at=step)
                print(f"Killed at step {step} of {total}.", flush=True)
            with training(arguments, second) as last:
                killed = follow(last)
            alone = follow(process)
    print(f"\n{'':14}{'left alone':20}killed {arguments.kills} times")
    for name, value in alone.items():
        verdict = "" if value == killed[name] else "DIFFER"
        print(f"{name:14}{shown(value):20}{shown(killed[name]):20}{verdict}".rstrip())
    same = alone == killed
    print(f"\nThe runs {'are equal, bit for bit' if same else 'DIFFER'} ({time.perf_counter() - begin:.0f} s).")
    return 0 if same else 1


@contextlib.contextmanager
def training(arguments, directory):
    """A training process that works in `directory`; it does not outlive the block."""
    options = ["--backend", arguments.backend, "--epochs", str(arguments.epochs), "--train", directory]
    options += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    with subprocess.Popen([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def follow(process, kill_at=None):
    """Read what a training process prints; kill it at a step, or return its result."""
    result = None
    for line in process.stdout:
        if line.startswith(RESULT):
            result = json.loads(line.removeprefix(RESULT))
        elif not line.startswith(STEP):
            print(line, end="", flush=True)
        elif kill_at is not None and int(line.removeprefix(STEP)) >= kill_at:
            process.kill()  # SIGKILL: nothing in the process hears of it
            return None
    if process.wait() or result is None:
        sys.exit(f"A training process failed with exit status {process.returncode}.")
    return result


def shown(value):
    return value[:16] if isinstance(value, str) else f"{value:.4f}"


if __name__ == "__main__":
    given = parse_arguments()
    check_installed(given.backend)
    if given.train:
        train(given)
    else:
        sys.exit(main(given))
