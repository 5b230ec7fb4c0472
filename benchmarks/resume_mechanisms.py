"""What can be used to go on after an interruption, each as its documentation shows it.

A mechanism is a function of `(new_model, directory)` that returns the model, the epoch to begin with, and callbacks.
"""

import glob
import os
import re

import keras
from resume_job import EVERY, STEPS

from tf_tricks.callbacks import TrainingCheckpoint


def nothing(new_model, directory):
    return new_model(), 0, []


def training_checkpoint(new_model, directory):
    return new_model(), 0, [TrainingCheckpoint(directory, every=EVERY, verbose=0)]


def backup_per_epoch(new_model, directory):
    return new_model(), 0, [keras.callbacks.BackupAndRestore(directory, delete_checkpoint=False)]


def backup_by_steps(new_model, directory, **options):
    saving = keras.callbacks.BackupAndRestore(directory, save_freq=EVERY, delete_checkpoint=False, **options)
    return new_model(), 0, [saving]


def backup_twice(new_model, directory):
    return backup_by_steps(new_model, directory, double_checkpoint=True)


def keras_file(new_model, directory):
    path = _newest(os.path.join(directory, "*.keras"))
    model = keras.saving.load_model(path) if path else new_model()
    return model, _epoch(path), [keras.callbacks.ModelCheckpoint(os.path.join(directory, "{epoch:03d}.keras"))]


def weights_file(new_model, directory):
    path, model = _newest(os.path.join(directory, "*.weights.h5")), new_model()
    if path:
        model.load_weights(path)
    save_to = os.path.join(directory, "{epoch:03d}.weights.h5")
    return model, _epoch(path), [keras.callbacks.ModelCheckpoint(save_to, save_weights_only=True)]


def tf_train(new_model, directory):
    import tensorflow as tf

    model = new_model()
    model.optimizer.build(model.trainable_variables)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model, optimizer=model.optimizer), directory, max_to_keep=3
    )
    if manager.latest_checkpoint:
        manager.checkpoint.restore(manager.latest_checkpoint).expect_partial()
    steps = [int(model.optimizer.iterations)]

    def on_train_batch_end(batch, logs):
        steps[0] += 1
        if steps[0] % EVERY == 0:
            manager.save(steps[0])

    return model, steps[0] // STEPS, [keras.callbacks.LambdaCallback(on_train_batch_end=on_train_batch_end)]


def orbax(new_model, directory):
    complete = [name for name in os.listdir(directory) if name.isdigit()]
    model = keras.saving.load_model(directory) if complete else new_model()
    saving = keras.callbacks.OrbaxCheckpoint(directory, save_freq=EVERY, max_to_keep=3)
    return model, int(model.optimizer.iterations) // STEPS, [saving]


def _newest(pattern):
    return max(glob.glob(pattern), default=None)


def _epoch(path):
    return int(re.findall(r"(\d+)\.[a-z0-9.]+$", path)[0]) if path else 0


NOTHING = "none"
MECHANISMS = {
    NOTHING: nothing,
    "BackupAndRestore, per epoch": backup_per_epoch,
    "BackupAndRestore(save_freq=int)": backup_by_steps,
    "the same, double_checkpoint": backup_twice,
    "ModelCheckpoint .keras + load_model": keras_file,
    "save_weights / load_weights": weights_file,
    "tf.train.CheckpointManager": tf_train,
    "OrbaxCheckpoint": orbax,
    "TrainingCheckpoint(every=int)": training_checkpoint,
}
OURS = "TrainingCheckpoint(every=int)"
# Those whose files say which step they hold; of the others the job itself notes when files have changed.
STEP_IN_NAME = {
    OURS: r"step-(\d+)\.safetensors",
    "OrbaxCheckpoint": r"(\d+)",
    "tf.train.CheckpointManager": r"ckpt-(\d+)\.index",
}


def saved_steps(mechanism, directory):
    """The steps of the complete checkpoints in the folder, by their names; None if the names do not tell."""
    if mechanism not in STEP_IN_NAME:
        return None
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(STEP_IN_NAME[mechanism], name)))
