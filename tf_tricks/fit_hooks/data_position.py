"""Where a `fit` is in its data, and how to get there again without training on what was used.

The order of the data is a function of the random state at the moment an iterator over it is made, and of what the
data itself remembers. So both are noted (an anchor) with the number of batches drawn since; to resume, the anchor is
put back, the iterator made, and that many batches are drawn and dropped.
"""

import warnings
import weakref

import keras

from tf_tricks._backend import BACKEND
from tf_tricks.fit_hooks import data_kinds, random_state, tf_data
from tf_tricks.fit_hooks.callback_state import copied
from tf_tricks.fit_hooks.data_iterator import Current, Iterable, Watched
from tf_tricks.fit_hooks.data_kinds import offers_state

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "EpochIterator._enumerate_iterator": "gives `fit` one step after the other: here steps are left out and noticed",
    "EpochIterator._get_iterator": "makes the iterator over the data, once an epoch or once a run",
    "EpochIterator._current_iterator": "with `steps_per_epoch` one iterator spans several epochs",
    "EpochIterator._steps_seen": "how much of it is used",
    "EpochIterator._num_batches": "the length of the data, once it is known",
    "EpochIterator._distributed_dataset": "on TensorFlow the pipeline that `fit` feeds: what makes the iterators",
    "EpochIterator.data_adapter": "tells what kind of data the user gave, and holds it",
    "EpochIterator.steps_per_epoch": "the `steps_per_epoch` of `fit`",
    "DataAdapter.on_epoch_begin": "calls the hook of a PyDataset, and is noted with the random state before it",
    "DataAdapter.on_epoch_end": "the same at the end of an epoch, and for all data tells of that end",
    "PyDatasetAdapter.enqueuer": "the workers that read it ahead, if any",
    "PyDatasetEnqueuer.ready_queue": "batches that its workers have read too early",
}

_HOOKS = ("on_epoch_begin", "on_epoch_end")  # of a PyDataset
_used = weakref.WeakSet()  # pipelines and PyDatasets that a `fit` of this process has read


class DataPosition:
    """Stands between `fit` and its data; made in `on_train_begin`, before the first batch is drawn.

    Args:
        iterator: Keras's EpochIterator over the data: the one that trains, or the one that validates.
        model: the model, whose own seed generators are no business of the data.
        after_step: callable without arguments, called on the training thread between two steps, when all callbacks of
            the last one have been called or handed to their thread; not after the last step of an epoch. None for
            validation data: each validation is a whole one, with an iterator of its own.
        after_epoch: callable without arguments or None, called when all steps of an epoch are taken, before Keras
            validates; also where only the end of the data shows that they are.
        saved: what `get_state` returned in the run that is resumed, or None.
    """

    def __init__(self, iterator, model, after_step=None, after_epoch=None, saved=None):
        self._iterator = iterator
        self._adapter = adapter = iterator.data_adapter
        self._after_step = after_step
        self._model = model
        self.kind = data_kinds.kind_of(adapter)
        self._seeds = data_kinds.data_seeds(adapter, model)
        self._order = None
        if BACKEND == "tensorflow" and self.kind == "arrays" and adapter._shuffle:
            self._order = tf_data.ArrayOrder(iterator, (saved or {}).get("order"))
        self.step = 0  # batches of this epoch that were trained on
        self._events = []  # of each hook of a PyDataset its name, the global random state before it, and the data's own
        self._begun = None  # the two states before the epoch that is under way
        self._past = 0  # how many of the events were before that
        self._made = 0  # iterators that were made
        self._current = None  # the one in use: its anchor and what was drawn from it
        self._resume_step, self._resume_current, self._on_resumed, self._dataset_state = 0, None, None, None
        self._before_begin = None  # the two states before the `on_epoch_begin` of the epoch that is resumed
        self._warned = False
        if self._reads_ahead:
            # On JAX and Torch `fit` draws a batch to build the model; what the workers had read besides would be left
            # over for the first epoch, in an order that nobody knows.
            while not adapter.enqueuer.ready_queue.empty():
                adapter.enqueuer.ready_queue.get()
        # Methods of the instance hide those of its class; both objects belong to this one `fit`.
        self._steps, iterator._enumerate_iterator = iterator._enumerate_iterator, self._enumerate
        self._source, iterator._get_iterator = iterator._get_iterator, lambda: Iterable(self._make)
        if self.kind == "PyDataset":
            for name in _HOOKS:
                setattr(adapter, name, self._noting(name, getattr(adapter, name)))
        if after_epoch is not None:
            hook = adapter.on_epoch_end
            adapter.on_epoch_end = lambda: (hook(), after_epoch())

    # --- what is known --------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self):
        """Batches in an epoch, or None as long as nobody knows."""
        return self._iterator.steps_per_epoch or self._iterator._num_batches

    def is_last(self, step):
        """Is the epoch over when `step` batches were trained on? False where nobody knows."""
        known = self.steps_per_epoch
        seen_all = self._iterator._num_batches and self._iterator._steps_seen >= self._iterator._num_batches
        return bool(known and (step >= known or seen_all))

    def remedy(self):
        """Why the order of this data cannot be brought back and what to do about it; None if it can."""
        return data_kinds.remedy(self._adapter)

    def shares_hooks_with(self, other):
        """Do both read one PyDataset whose hooks change it? Then neither knows what the other made of it."""
        dataset = getattr(self._adapter, "py_dataset", None)
        if dataset is None or dataset is not getattr(other._adapter, "py_dataset", None) or offers_state(dataset):
            return False
        return any(_overridden(dataset, name) for name in _HOOKS)

    def shares_a_shuffle_with(self, other):
        """Do two tf.data pipelines take their orders from one `shuffle`, turn by turn?"""
        return bool(data_kinds.shuffles(self._adapter) & data_kinds.shuffles(other._adapter))

    def get_state(self, in_epoch=False):
        """A tree of plain values; `in_epoch` tells whether an epoch has begun and not ended."""
        trains = self._after_step is not None
        spanning = trains and self._iterator.steps_per_epoch and self._iterator._current_iterator is not None
        current = self._current is not None and bool(in_epoch or spanning) or None
        dataset = getattr(self._adapter, "py_dataset", None)
        return {
            "kind": self.kind,
            "step": self.step if in_epoch else 0,
            "order": None if self._order is None else self._order.get_state(),
            "events": [list(event) for event in (self._events[: self._past] if in_epoch else self._events)],
            "begun": self._begun if in_epoch else None,
            "made": self._current.number if current else self._made,
            "current": current and self._current.get_state(),
            "num_batches": self._iterator._num_batches,
            "steps_per_epoch": self.steps_per_epoch,
            "seeds": self._seeds.take(),
            "dataset": copied(dataset.get_state()) if offers_state(dataset) else None,
        }

    # --- going back to a position ---------------------------------------------------------------------------------

    def resume(self, saved, on_resumed=None):
        """Go to a saved position; within an epoch `on_resumed` is called just before the first step that is new.

        Returns:
            The step within the epoch to go on at: the saved one, or 0 if an epoch has another length than before.
        """
        self._resume_step = saved["step"]
        self._on_resumed = on_resumed if saved["step"] else None
        before, now = saved["steps_per_epoch"], self.steps_per_epoch
        if before and now and before != now and self._after_step is not None:
            self.warn(
                f"an epoch had {before} steps when the run was saved, and has {now} now; the epoch begins anew. Give "
                "the data and `batch_size` of before to go on in the middle of it"
            )
            self._resume_step = 0
            return 0
        if saved["kind"] != self.kind:
            self.warn(f"the run was saved over {saved['kind']} and goes on over {self.kind}: only the step is kept")
            return self._resume_step
        iterator = self._iterator
        if iterator._num_batches is None:
            iterator._num_batches = saved["num_batches"]
        in_epoch, current = saved["step"] > 0, saved["current"]
        self._repeat_events(saved["events"])
        self._before_begin = saved["begun"]
        self._repeat_iterators(saved["made"])
        if not in_epoch:
            self._seeds.put_back(saved["seeds"])
        if offers_state(getattr(self._adapter, "py_dataset", None)) and saved["dataset"] is not None:
            self._dataset_state = saved["dataset"]
            if not in_epoch:
                self._adapter.py_dataset.set_state(saved["dataset"])
        self._resume_current = current
        if current is not None and (not in_epoch or current["drawn"] > saved["step"]):
            # It was made before this epoch: have it there, so that the epoch does not make another one.
            iterator._current_iterator = iter(iterator._get_iterator())
            iterator._steps_seen = current["drawn"] - saved["step"]
        return self._resume_step

    def _repeat_events(self, events):
        """Call the hooks of a PyDataset as often as before, with the same random states."""
        if self.kind != "PyDataset" or offers_state(self._adapter.py_dataset):
            return
        if events and self._adapter.py_dataset in _used:
            self.warn(
                "an earlier `fit` of this process has used this PyDataset, and its hooks have reshuffled it. Make it "
                "anew before `fit`, or give it `get_state` and `set_state`"
            )
        for name, state, own in events:
            if state is not None:
                random_state.set_host(state)
            self._seeds.own.put_back(own)
            getattr(self._adapter.py_dataset, name)()
        self._events = [list(event) for event in events]

    def _repeat_iterators(self, count):
        """A reshuffling `shuffle` with a seed gives each new iterator its next order, so make as many again."""
        self._made = count
        if self.kind != "tf.data":
            return
        dataset = self._iterator._distributed_dataset if BACKEND == "tensorflow" else self._adapter._dataset
        if self._adapter._dataset in _used and any(
            name == "shuffle" for name, *_ in data_kinds.random_operations(self._adapter)
        ):
            self.warn(
                "an earlier `fit` of this process has read this tf.data pipeline, and its shuffle has moved on. Make "
                "the pipeline anew before `fit`"
            )
        for _ in range(count):
            iter(dataset)

    def warn(self, reason):
        """One warning about the order of the data."""
        if not self._warned:
            self._warned = True
            which = "data" if self._after_step is not None else "validation data"
            warnings.warn(f"TrainingCheckpoint: the order of the {which} cannot be kept: {reason}.", stacklevel=2)

    # --- what stands in `fit`'s way -------------------------------------------------------------------------------

    def _enumerate(self):
        self.step = 0
        for begin, end, iterator in self._steps():
            if end < self._resume_step:  # trained on before; its batch was dropped when the iterator was made
                self.step = end + 1
                continue
            self._resume_step = 0
            if self._on_resumed is not None:
                call, self._on_resumed = self._on_resumed, None
                call()
            yield begin, end, iterator
            self.step = end + 1
            if self._current is not None:
                self._current.drawn += end + 1 - begin
            if self._after_step is not None and not self.is_last(self.step):
                self._after_step()
                if self._model.stop_training:  # a guard has found a bad step meanwhile
                    return

    def _make(self):
        source = self._source()
        resumed, self._resume_current = self._resume_current, None
        if resumed and not self._reads_ahead:
            random_state.set_host(resumed["anchor"])
            self._seeds.put_back(resumed["seeds"])
        self._current = current = Current(self._made, random_state.host(), self._seeds.take())
        if self._order is not None:
            self._order.begin_pass(self._made)
        iterator = iter(source)
        if BACKEND == "tensorflow":
            self._made += 1
        else:
            iterator = Watched(iterator, current, self._count_first, self._draws_to_watch())
        if self.kind in ("tf.data", "PyDataset"):
            _used.add(self._adapter._dataset if self.kind == "tf.data" else self._adapter.py_dataset)
        if resumed:
            for k in range(resumed["drawn"]):
                if (state := resumed["jumps"].get(str(k))) is not None:
                    random_state.set_host(state)
                next(iterator, None)
            current.drawn = resumed["drawn"]
        return iterator

    def _count_first(self):
        self._made += 1

    def _draws_to_watch(self):
        """Of how many draws the random state matters: those that draw from it on this thread."""
        if self._reads_ahead or self._after_step is None:
            return 0
        only_first = self.kind == "tf.data" or (self.kind == "arrays" and self._adapter._shuffle != "batch")
        return 1 if only_first else float("inf")

    @property
    def _reads_ahead(self):
        """Do threads of Keras's own read a PyDataset, and draw random numbers meanwhile?"""
        return getattr(self._adapter, "enqueuer", None) is not None

    def _noting(self, name, hook):
        overridden = _overridden(self._adapter.py_dataset, name)

        def noting():
            if name == "on_epoch_begin" and self._before_begin is not None:
                # Workers draw from here on, so it is the last chance to set it.
                random_state.set_host(self._before_begin[0])
                self._seeds.own.put_back(self._before_begin[1])
                self._before_begin = None
            before, before_own = random_state.host(), self._seeds.own.take()
            if name == "on_epoch_begin":
                self._begun, self._past = [before, before_own], len(self._events)
            hook()
            if name == "on_epoch_begin" and self._resume_step and self._dataset_state is not None:
                self._adapter.py_dataset.set_state(self._dataset_state)
                self._dataset_state = None
            if overridden:
                drew = not random_state.same_host(before, random_state.host())
                self._events.append([name, before if drew else None, before_own])

        return noting

    @property
    def python_state_is_ours(self):
        """May Python's and NumPy's random state be set within an epoch? Not if threads that read ahead draw from it."""
        return not self._reads_ahead and not (
            BACKEND == "tensorflow" and self.kind in ("PyDataset", "generator", "DataLoader")
        )


def _overridden(dataset, hook):
    return getattr(type(dataset), hook) is not getattr(keras.utils.PyDataset, hook)
