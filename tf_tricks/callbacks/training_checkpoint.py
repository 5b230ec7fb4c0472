"""TrainingCheckpoint: run the script again after any interruption, and `fit` goes on with the same bits."""

import time
import warnings

import keras

from tf_tricks._checks import check_bool, check_integer, check_keep_best, check_path
from tf_tricks.callbacks._checkpoint_schedule import Schedule, check_every
from tf_tricks.callbacks._exit_signals import ExitSignals
from tf_tricks.checkpoints import run_files
from tf_tricks.checkpoints.file_format import require_packages
from tf_tricks.fit_hooks import callback_state, hook_state, random_state, running_fit
from tf_tricks.fit_hooks.data_position import DataPosition
from tf_tricks.fit_hooks.hook import require_optimizer


@keras.saving.register_keras_serializable(package="tf_tricks")
class TrainingCheckpoint(keras.callbacks.Callback):
    """Save the whole run while `fit` works, and go on from there when the script is started again.

    A run that was interrupted at any step and started again ends with the same bits as one that was not: weights,
    optimizer variables, metrics, `History`, learning rate, counters of the callbacks, random states, and the position
    in the shuffled data. Other callbacks take part with `get_state()` and `set_state(state)`; Keras's own are known.

    The training thread pays for a copy of the state; a thread of its own writes it, checks nothing in twice, and an
    error of the disk becomes a warning and never ends training.

    Args:
        directory: path of a folder for this run alone, or an `fsspec` URL such as "s3://bucket/run" (without a lock).
        every: "epoch"; an int >= 1, a number of steps; or a time, such as "30s", "10min", "2h". A time is stretched
            where saving would take more than 1 % of it. The end of the run is always saved.
        keep: int >= 1, how many of the newest checkpoints stay.
        resume: bool. True: go on with the newest checkpoint that is not damaged; a run that has ended (all epochs are
            done, or a callback has set `stop_training`) returns at once with its history, unless `epochs` is larger
            than it was. False: begin anew; the checkpoints in the folder are moved to a subfolder of it.
        save_on_exit: bool, save once more on SIGTERM and Ctrl-C, after the step or the validation that runs. Then
            `SystemExit` or `KeyboardInterrupt` is raised, or your own handler called. Only where `fit` runs on the
            main thread.
        keep_best: None or `(monitor, mode)`, such as `("val_loss", "min")`: the checkpoint of the best epoch stays too.
        verbose: int, 1 says in a line where a run goes on, 0 nothing.
    Raises:
        TypeError, ValueError: an argument is out of range.
        ValueError: in `fit`, model or optimizer differ from the saved ones; the message names the first variable.
            Nothing is changed then.
        ImportError: safetensors or xxhash is not installed.
        NotADirectoryError: in `fit`, `directory` is a file.
        RuntimeError: in `fit`, another process works in `directory`.
    Reference:
        Mohan, Phanishayee and Chidambaram (2021), CheckFreq: Frequent, Fine-Grained DNN Checkpointing, FAST '21,
        sections 3 and 4: snapshot and write apart, and a data iterator that can be resumed.
    Example:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[TrainingCheckpoint(directory, every=1, verbose=0)])
        >>> again = model.fit(x, y, epochs=3, verbose=0, callbacks=[TrainingCheckpoint(directory, verbose=0)])
        >>> again.epoch
        [0, 1, 2]
    """

    async_safe = True  # it has no hook for batches: it looks between two steps

    def __init__(self, directory, every="epoch", keep=3, resume=True, save_on_exit=True, keep_best=None, verbose=1):
        super().__init__()
        self.directory = check_path("directory", directory)
        self.every = check_every(every)
        self.keep = check_integer("keep", keep, 1)
        self.resume = check_bool("resume", resume)
        self.save_on_exit = check_bool("save_on_exit", save_on_exit)
        self.keep_best = check_keep_best(keep_best)
        self.verbose = check_integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0)
        require_packages()
        self._fit = self._data = self._validation = self._files = self._signals = self._last = None

    # --- fit ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self._close()  # a `fit` that raised may have left something open
        require_optimizer(self.model, self)
        self._fit = running_fit.running_fit(self.model, self)
        if any(isinstance(each, _Last) for each in self._fit.callbacks):
            raise ValueError("TrainingCheckpoint: one `fit` takes one. Received: two in `callbacks`.")
        # All other callbacks are to have their turn first, wherever in the list the user has put this one.
        self._last = _Last(self)
        self._last.set_model(self.model)
        self._last.set_params(self.params)
        self._fit.callbacks.append(self._last)

    def begin(self):
        """All callbacks have begun: find out where this run is, and go there."""
        try:
            self._files = run_files.open_run(
                self.directory, self.keep, self.keep_best, self._fit.is_running, running_fit.is_chief(self.model)
            )
            saved = self._files.newest() if self.resume else self._files.set_all_aside()
            run = saved and saved["run"]
            self._schedule = Schedule(self.every, self.keep_best, run and run["schedule"])
            self._data = DataPosition(
                self._fit.epoch_iterator, self.model, self._between_steps, self._steps_end, run and run["data"]
            )
            self._validation, self._held, self._reserved = None, None, False
            if saved:
                self._resume(saved)
            else:
                self._warn_of_order(self._data)
        except BaseException:
            self._close()
            raise
        self._notice_signals()

    def _resume(self, saved):
        run = saved["run"]
        running_fit.build(self._fit)
        self._restore(saved)
        over = run["finished"] is not None and self.params["epochs"] <= run["finished"]
        self._fit.begin_at(max(run["epoch"], self.params["epochs"]) if over else run["epoch"])
        if over:
            random_state.put_back(run["random"])
            self._say(
                f"the run had ended after epoch {run['epoch']}; nothing to do. `epochs` above "
                f"{run['finished']} goes on, resume=False begins anew."
            )
            return
        step = self._data.resume(run["data"], on_resumed=lambda: self._restore(saved, in_epoch=True))
        self._say(f"going on at epoch {run['epoch'] + 1}, step {step}, from {saved['name']}.")
        if run.get("validation") is not None and self._follow_validation():
            self._validation.resume(run["validation"])
        self._warn_of_order(self._data)
        if step:
            self._schedule.resume_in_epoch(step)
        if not run["data"]["step"]:
            random_state.put_back(run["random"])

    def _warn_of_order(self, position):
        if reason := position.remedy():
            position.warn(reason)

    def _steps_end(self):
        """All steps of an epoch are taken: Keras is about to validate."""
        if self._validation is None and self._fit.validates_after(self._last.epoch):
            self._follow_validation()

    def _follow_validation(self):
        """From its first validation on, follow the validation data; tell whether there is anything to follow."""
        iterator = self._fit.validation_iterator()
        if iterator is None:
            return False
        self._validation = DataPosition(iterator, self.model)
        self._warn_of_order(self._validation)
        if self._validation.shares_hooks_with(self._data):
            self._validation.warn("it is the PyDataset that trains, too. Make two of them")
        if self._fit.epoch_iterator.steps_per_epoch and self._validation.shares_a_shuffle_with(self._data):
            self._validation.warn(
                "it comes from the `shuffle` that the training data comes from, and with `steps_per_epoch` the two do "
                "not take turns. Leave `steps_per_epoch` out, or shuffle after the cut"
            )
        return True

    def _restore(self, saved, in_epoch=False):
        """Everything but the position in the data; within an epoch a second time, after `on_epoch_begin`."""
        run = saved["run"]
        run_files.assign(self.model, saved)
        callback_state.put_back(self._fit.callbacks, run["callbacks"])
        hook_state.put_back(self.model, run["hook"])
        history = self.model.history
        history.epoch, history.history = list(run["history"]["epoch"]), dict(run["history"]["history"])
        if in_epoch:
            random_state.put_back(run["random"], python=self._data.python_state_is_ours)

    def end_epoch(self, epoch, logs):
        """All callbacks have seen the end of the epoch."""
        finished = self.params["epochs"] if self._is_over(epoch) else None
        due = self._schedule.epoch_ends(self._data.step, logs) or self._held is not None
        self._held = None
        if due or finished or self._signals.requested:
            self._save(epoch + 1, in_epoch=False, finished=finished, logs=logs)
        self._warn_of_errors()
        if self._signals.requested:
            self._leave()

    def begin_epoch(self):
        """`fit` has begun its first epoch: from now on it counts by itself."""
        self._fit.begin_at(None)

    def end(self):
        """`fit` is over."""
        signals, self._signals = self._signals, None
        missed = self.keep_best is not None and not self._schedule.has_best
        self._close()
        if signals.requested:  # after the last epoch
            signals.leave()
        signals.uninstall()
        if missed:
            warnings.warn(
                f"TrainingCheckpoint: `keep_best` monitors `{self.keep_best[0]}`, which was in the logs of no epoch. "
                f"Available: {', '.join(self.model.history.history)}.",
                stacklevel=2,
            )

    def _is_over(self, epoch):
        return self.model.stop_training or epoch + 1 >= self.params["epochs"]

    # --- between two steps ----------------------------------------------------------------------------------------

    def _between_steps(self):
        if not self._reserved:  # not before the first step, in which TensorFlow makes the optimizer's variables
            self._reserved = True
            self._files.reserve_memory(self.model)
        if self._held is not None:  # the step after it exists, so it was not the last one of its epoch
            self._files.write(*self._held)
            self._held = None
            if self._signals.requested:
                self._leave()
        self._warn_of_errors()
        known = self._data.steps_per_epoch is not None
        if self._schedule.step_ends(self._data.step) or self._signals.requested:
            self._save(self._last.epoch, in_epoch=True, hold=not known)
        if self._signals.requested and self._held is None and not self.model.stop_training:
            self._leave()

    def _save(self, epoch, in_epoch, finished=None, hold=False, logs=None):
        begin = time.perf_counter()
        self._fit.wait_for_callbacks()
        hook_state.flush(self.model)
        if in_epoch and self.model.stop_training:  # a guard has just found a bad step: the epoch ends here
            return
        self._files.wait_until_free()
        tree = self._files.tree(
            self.model,
            epoch=epoch,
            finished=finished,
            schedule=self._schedule.get_state(),
            data=self._data.get_state(in_epoch),
            validation=self._validation and self._validation.get_state(),
            random=random_state.take(),
            callbacks=callback_state.take(self._fit.callbacks),
            hook=hook_state.take(self.model),
            history={"epoch": list(self.model.history.epoch), "history": _copied(self.model.history.history)},
        )
        job = (self._schedule.total, tree, self._schedule.metric(logs))
        if hold:
            self._held = job
        else:
            self._files.write(*job)
        self._schedule.saved(time.perf_counter() - begin)

    def _warn_of_errors(self):
        self._warn_of(self._files.take_error())

    def _warn_of(self, error):
        if error is not None:
            warnings.warn(
                f"TrainingCheckpoint: could not write to {self.directory}: {error} Training goes on; the checkpoints "
                "written before are still there.",
                stacklevel=2,
            )

    def _leave(self):
        self._files.flush()
        try:
            self._signals.leave()
        except BaseException:
            self._close()
            raise
        self._notice_signals()  # a handler of the user's has returned: training goes on

    def _notice_signals(self):
        self._signals = ExitSignals(self._fit.is_running)
        if self.save_on_exit:
            self._signals.install()

    def _close(self):
        if self._signals is not None:
            self._signals.uninstall()
        error = None
        if self._files is not None:
            self._files.close()
            error = self._files.take_error()
        if self._fit is not None:
            self._fit.begin_at(None)
            if self._last in self._fit.callbacks:
                self._fit.callbacks.remove(self._last)
        self._fit = self._data = self._validation = None
        self._files = self._signals = self._last = self._held = None
        self._warn_of(error)

    def _say(self, sentence):
        if self.verbose:
            print(f"TrainingCheckpoint: {sentence}")

    def get_config(self):
        return {
            "directory": self.directory,
            "every": self.every,
            "keep": self.keep,
            "resume": self.resume,
            "save_on_exit": self.save_on_exit,
            "keep_best": self.keep_best,
            "verbose": self.verbose,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class _Last(keras.callbacks.Callback):
    """Stands at the end of the list of callbacks, so that the others have had their turn."""

    async_safe = True

    def __init__(self, owner):
        super().__init__()
        self._owner = owner
        self.epoch = 0

    def on_train_begin(self, logs=None):
        self._owner.begin()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._owner.begin_epoch()

    def on_epoch_end(self, epoch, logs=None):
        self._owner.end_epoch(epoch, logs or {})

    def on_train_end(self, logs=None):
        self._owner.end()


def _copied(history):
    return callback_state.copied({key: list(values) for key, values in history.items()})
