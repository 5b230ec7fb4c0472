"""The base of all augmentation layers: draw a few numbers for each image, then one pass over the pixels."""

import functools
import zlib

import keras
import numpy as np

from tf_tricks._backend import BACKEND, tf, torch
from tf_tricks._checks import check_integer, check_one_of, check_optional, check_range
from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation import _kernels, _loops, _random
from tf_tricks.layers.augmentation._compiled import Compiled, apart
from tf_tricks.layers.augmentation._inputs import (
    are_masks_first,
    check_masks,
    check_training,
    dtype_of_box_labels,
    is_ragged,
    pack,
    take_apart,
    unpack,
)
from tf_tricks.layers.augmentation._namespaces import NUMPY, OPS, namespace_of


class AugmentationLayer(keras.layers.Layer):
    """Change each image of a batch in a random way of its own, while training.

    A subclass draws its parameters in `draw` and uses them in `transform`, which XLA compiles, `transform_others` too.
    Of a dict, keys that are not `_inputs.KEYS` are handed on as they are; layers that mix images refuse them.

    To change an attribute of a layer that was called has no effect where it is compiled: make a new layer.

    With a seed the numbers are the same in each run, in `Dataset.map` without `num_parallel_calls` only: with it the
    calls take their numbers in an order that changes, and with the TensorFlow backend now and then two take the same.
    The replicas of `tf.distribute` and, on Torch, the worker processes of a `DataLoader` draw numbers of their own;
    other processes that each have a copy of the layer draw the same ones, so give each copy another seed.

    Args:
        value_range: (low, high), the range of the pixels.
        seed: None or int in [0, 2**31). The same seed gives the same numbers on every backend; layers of different
            classes draw different ones from it.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        dtype: None, a dtype or a policy: that of the images that come out. One of integers, such as "uint8", rounds and
            clips; it needs a `value_range` of more than three integers.
    """

    range_matters = True  # does `value_range` change the result?
    moves_pixels = False  # then boxes and keypoints move too, in float32
    changes_at_rest = False  # does `at_rest` change the images?

    # How the pass runs on a CPU: where XLA compiles it, or, all layers image by image, on Torch; see `_loops`.
    by_image = None  # image by image also where the layer is alone: "fast" or "frugal"; several stages always are
    rereads = False  # reads each pixel several times: it is to lie in memory, as float32
    widens = False  # gives float32 whatever it is given
    mixes_images = False  # an image needs others of its batch

    def __init__(self, value_range=(0, 255), seed=None, data_format=None, **kwargs):
        kwargs.setdefault("autocast", False)  # images are converted within the pass, and rounded there
        super().__init__(**kwargs)
        self.value_range = check_range("value_range", value_range)
        self.seed = check_optional(check_integer, "seed", seed, 0)
        if self.seed is not None and self.seed >= 2**31:  # the state of the generator is an int32 on Torch
            raise ValueError(f"`seed` must be an int in [0, 2**31). Received: seed={seed!r}")
        if "int" in self.compute_dtype and self.value_range[1] - self.value_range[0] <= 2:
            raise ValueError(
                "`dtype` must be a float one where the range of the values holds three integers or less: the rest "
                f"would be rounded away. Received: dtype={self.compute_dtype!r}, value_range={value_range!r}"
            )
        self.data_format = check_one_of(
            "data_format", data_format or keras.config.image_data_format(), ("channels_last", "channels_first")
        )
        self._generator = keras.random.SeedGenerator(self.seed)
        # Two layers with the same seed, of different classes, are not to draw the same numbers.
        self._class_number = zlib.crc32(type(self).__name__.encode()) & 0x7FFFFFFF
        self._counter = None  # of the calls in tf.data with JAX or Torch, which cannot count there
        self._draw = Compiled(self._draw_all, has_gradient=False)
        self._passes = {}  # see `_plan`; TensorFlow saves no model with a dict whose keys are not strings

    # --- what a subclass says ------------------------------------------------------------------------------------

    def draw(self, xp, draws, size):
        """The parameters of one call: a nest of tensors `(batch, ...)`.

        Args:
            xp: the namespace to compute in.
            draws: `Draws`, where random numbers come from.
            size: (height, width) of the images.
        """
        raise NotImplementedError

    def transform(self, xp, images, parameters):
        """The images changed: `(batch, height, width, channels)` of any dtype -> the same dtype, or float32.

        Runs compiled, as one pass over the pixels.
        """
        raise NotImplementedError

    def transform_others(self, xp, others, parameters, size):
        """What belongs to the images, changed with them: a dict with keys of `_inputs.KEYS`; `size` as in `draw`."""
        return others

    def output_size(self, size):
        """(height, width) of what comes out."""
        return size

    def stages(self):
        """What runs one after the other, each with a pass of its own: objects with the methods above, and the next."""
        return [self]

    def without(self, xp, parameters, kept):
        """The parameters with those of the images for which `kept` `(batch,)` is False made to change nothing.

        None: there are no such parameters; the images are then chosen, changed or not.
        """
        return None

    # --- call ----------------------------------------------------------------------------------------------------

    def __call__(self, data, *args, **kwargs):
        tf = tensorflow()
        if tf is None or tf.executing_eagerly():
            return self._call_with(data, *args, **kwargs)
        # `Dataset.map` would have autograph rewrite all that a layer calls.
        return tf.autograph.experimental.do_not_convert(self._call_with)(data, *args, **kwargs)

    def _call_with(self, data, *args, **kwargs):
        rest = {}
        if isinstance(kwargs.get("training"), np.bool_):  # of which Keras makes a tensor
            kwargs["training"] = bool(kwargs["training"])
        if isinstance(data, dict):
            data, rest = take_apart(data, type(self).__name__, any(stage.mixes_images for stage in self.stages()))
        images = data["images"] if isinstance(data, dict) else data
        if hasattr(images, "shape") and getattr(images.shape, "rank", 0) is None:  # Keras fails on such a tensor
            raise ValueError(
                f"{type(self).__name__}: images must have rank 3 or 4. Received: a tensor of unknown rank; call its "
                "`set_shape` first"
            )
        # Keras can do nothing with a tensor of TensorFlow on another backend.
        call = super().__call__ if namespace_of(images) is OPS else self.call
        result = call(data, *args, **kwargs)
        return {**rest, **result} if rest else result

    def call(self, data, training=True):
        check_training(type(self).__name__, training)
        images = data["images"] if isinstance(data, dict) else data
        if is_ragged(images):
            return self.call_ragged(data, training)
        xp = namespace_of(images)
        inputs = unpack(xp, data, self.data_format, type(self).__name__)
        images, others = inputs.images, inputs.others
        if not training:
            return pack(xp, inputs, *self._unchanged(xp, images, others))
        key = self._key(xp)
        drawn = self._drawn(xp, images, key)
        size = self._size_of(xp, images)
        stages = self.stages()
        for count, one_pass in self._plan(xp, images):
            (mine, drawn), (here, stages) = ((each[:count], each[count:]) for each in (drawn, stages))
            if one_pass is None:
                images, others = self._run(xp, here[0], images, others, mine[0])
            else:
                images = one_pass(xp, images, (mine, key[0]))
            for stage, parameters in zip(here, mine, strict=True):
                if others and one_pass is not None:
                    others = stage.transform_others(xp, others, parameters, size)
                size = stage.output_size(size)
        return pack(xp, inputs, _kernels.handed_out(xp, images, inputs.images), others)

    def call_ragged(self, data, training):
        """`call` for a `tf.RaggedTensor` of images of different sizes, which only layers of one output size take."""
        raise ValueError(
            f"{type(self).__name__}: images must all have one size. Received: a tf.RaggedTensor; bring them to one "
            "size before, with RandomCrop or RandomResizedCrop, or map the layer over images instead of batches"
        )

    def at_rest(self, xp, images, others):
        """(images, others) when nothing is to be augmented; the images are `(batch, height, width, channels)`.

        The dtype of the images comes after: that of a member of a composition plays no part.
        """
        return images, others

    def _unchanged(self, xp, images, others):
        stages = self.stages()
        if "segmentation_masks" in others and any(stage.moves_pixels for stage in stages):
            shape = tuple(others["segmentation_masks"].shape)
            check_masks(type(self).__name__, shape, tuple(self._size_of(xp, images)))
        if not any(stage.changes_at_rest for stage in stages):  # then the order of the axes plays no part
            return self._finish(xp, images), self.at_rest(xp, images, others)[1]
        images, others = self.at_rest(xp, self._channels_last(xp, images), others)
        return self._as_given(xp, self._finish(xp, images)), others

    def _drawn(self, xp, images, key):
        """The parameters of each stage; the images are given for their shape alone."""
        if not (_loops.runs_in_python(xp) and _loops.is_on_cpu(xp, images)):
            return self._draw(xp, images, key)
        try:
            known = keras.ops.convert_to_numpy(key)
        except RuntimeError:  # in a transformation of `torch.func` no number is known
            return self._draw(xp, images, key)
        with np.errstate(all="ignore"):  # as on the backends
            drawn = self._draw_all(NUMPY, images, known)
        return _loops.on_leaves(_as_tensor, drawn)

    def _draw_all(self, xp, images, key):
        key = xp.bitwise_xor(key, self._class_number)
        draws, drawn, size = _random.Draws(xp, key, xp.shape(images)[0]), [], self._size_of(xp, images)
        for stage in self.stages():
            drawn.append(stage.draw(xp, draws, size))
            size = stage.output_size(size)
        return drawn

    def _plan(self, xp, images):
        """List of (how many stages, what runs them in one pass); None: a stage that is not ours to compile."""
        in_turns, in_python = _loops.images_in_a_turn(xp, images) > 0, _loops.runs_in_python(xp)
        pays = ("frugal",) if _loops.is_cached(xp, images) else ("frugal", "fast")
        kind = f"{'in turns' if in_turns else 'together'}, {'' if in_python else pays}"
        if kind not in self._passes:
            groups = []
            for stage in self.stages():
                mixes = stage.mixes_images and not (in_python and hasattr(stage, "with_partners"))
                alone = not in_turns or hasattr(stage, "run") or mixes
                if alone or not groups or groups[-1][0]:
                    groups.append((alone, []))
                groups[-1][1].append(stage)
            plan, last = [], len(groups) - 1
            for i, (alone, stages) in enumerate(groups):
                if hasattr(stages[0], "run"):
                    plan.append((1, None))
                    continue
                # The dtype of what a loop gives; Python asks for none.
                is_known = in_python or i == last or any(stage.widens for stage in stages)
                # Uncompiled, every operation leaves something in the cache for the next one.
                by_image = in_python or stages[0].by_image in pays
                if not alone and is_known and (by_image or len(stages) > 1):
                    plan.append((len(stages), Compiled(self._pass_in_turns(stages, i == 0, i == last))))
                    continue
                for k, stage in enumerate(stages):
                    ends = (i == 0 and k == 0, i == last and k == len(stages) - 1)
                    plan.append((1, Compiled(self._pass_of(stage, *ends))))
            self._passes[kind] = plan
        return self._passes[kind]

    # The order of the axes and the dtype change within the pass, where XLA has them for nothing.

    def _pass_of(self, stage, is_first, is_last):
        def one_pass(xp, images, parameters):
            (mine,), number = parameters
            images = self._channels_last(xp, images) if is_first else images
            if not is_last:
                return apart(xp, functools.partial(stage.transform, xp, images, mine), number)
            return self._as_given(xp, self._finish(xp, stage.transform(xp, images, mine)))

        return one_pass

    def _pass_in_turns(self, stages, is_first, is_last):
        def one_turn(xp, images, parameters):
            images = self._channels_last(xp, images) if is_first else images
            if stages[0].rereads:
                images = _loops.settled(xp, functools.partial(xp.cast, images, "float32"))
            *others, last = [functools.partial(stage.transform, xp) for stage in stages]
            for transform, mine in zip(others, parameters, strict=False):
                images = _loops.settled(xp, functools.partial(transform, images, mine))
            images = last(images, parameters[len(others)])
            if is_last:
                return self._as_given(xp, self._finish(xp, images))
            return images if _loops.runs_in_python(xp) else xp.cast(images, "float32")

        def one_turn_of_several(xp, images, parameters, whole):
            whole = self._channels_last(xp, whole) if is_first else whole
            return one_turn(xp, images, [stages[0].with_partners(xp, whole, parameters[0]), *parameters[1:]])

        def one_pass(xp, images, parameters):
            mine, number = parameters
            numbers = xp.arange(xp.shape(images)[0], dtype="int32") + number
            dtype = self.compute_dtype if is_last else "float32"
            turn = functools.partial(one_turn_of_several, whole=images) if stages[0].mixes_images else one_turn
            return _loops.in_turns(xp, turn, images, [*mine, numbers], dtype)

        return one_pass

    def _run(self, xp, stage, images, others, parameters):
        """A stage that is not ours to compile."""
        stages = self.stages()
        images = self._channels_last(xp, images) if stage is stages[0] else images
        images, others = stage.run(xp, images, others, parameters)
        return (self._as_given(xp, self._finish(xp, images)) if stage is stages[-1] else images), others

    def _channels_last(self, xp, images):
        return xp.transpose(images, (0, 2, 3, 1)) if self.data_format == "channels_first" else images

    def _as_given(self, xp, images):
        return xp.transpose(images, (0, 3, 1, 2)) if self.data_format == "channels_first" else images

    def _size_of(self, xp, images):
        shape = tuple(xp.shape(images))
        return shape[2:4] if self.data_format == "channels_first" else shape[1:3]

    def _finish(self, xp, images):
        """The images in the layer's dtype; integers rounded, and clipped to what they hold."""
        kind = keras.backend.standardize_dtype(images.dtype)
        if kind == self.compute_dtype:
            return images
        if "int" in self.compute_dtype and not ("int" in kind and np.can_cast(kind, self.compute_dtype)):
            values, limits = xp.cast(images, "float32"), _limits(self.compute_dtype)
            return _kernels.to_whole_numbers(xp, values, self.compute_dtype, *limits)
        return xp.cast(images, self.compute_dtype)

    def _key(self, xp):
        """int32 `(2,)`: the seed, and how often the layer was called."""
        if xp is OPS:
            return _random.fold(xp, keras.ops.cast(self._generator.next(), "int32"), _number_of_copy())
        tf = tensorflow()
        if self._counter is None:
            with tf.init_scope():
                self._counter = tf.Variable(0, dtype=tf.int64, trainable=False)
        state = keras.ops.convert_to_numpy(self._generator.state).astype("int64")
        # Reads and adds as one: of two calls at a time `assign_add` may give both the same number.
        count = tf.raw_ops.ResourceCountUpTo(resource=self._counter.handle, limit=2**63 - 1, T=tf.int64)
        return tf.stack([tf.constant(int(state[0]) & 0x7FFFFFFF, tf.int32), tf.cast(count, tf.int32)])

    # --- Keras ---------------------------------------------------------------------------------------------------

    def build(self, input_shape):
        pass  # no weights

    def compute_output_spec(self, data, training=True):
        check_training(type(self).__name__, training)

        def spec(name, value):
            if isinstance(value, dict):
                return {key: spec(f"{name}/{key}", each) for key, each in value.items()}
            if name == "images":
                return keras.KerasTensor(self.compute_output_shape(value.shape), dtype=self.compute_dtype)
            dtype = dtype_of_box_labels(value.dtype) if name == "bounding_boxes/labels" else value.dtype
            return keras.KerasTensor(*self.spec_beside(data["images"].shape, name, tuple(value.shape), dtype))

        if isinstance(data, dict):
            return {name: spec(name, each) for name, each in data.items()}
        return spec("images", data)

    def spec_beside(self, images_shape, name, shape, dtype):
        """`spec_of` for masks channels first or last, as they come in with images of a shape."""
        if name != "segmentation_masks" or not are_masks_first(self.data_format, shape, tuple(images_shape)):
            return self.spec_of(name, shape, dtype)
        shape, dtype = self.spec_of(name, (shape[0], *shape[2:], shape[1]), dtype)
        return (shape[0], shape[3], *shape[1:3]), dtype

    def spec_of(self, name, shape, dtype):
        """(shape, dtype) of what comes out, while training, for what goes in under a key other than "images".

        The names are those of `_inputs.KEYS`, and "bounding_boxes/boxes", "bounding_boxes/labels" and the like.
        """
        if name == "segmentation_masks" and len(shape) in (3, 4):
            shape = (shape[0], *self.output_size(shape[1:3]), *shape[3:])
        if name in ("bounding_boxes/boxes", "keypoints") and self.moves_pixels:
            dtype = "float32"
        return shape, dtype

    def compute_output_shape(self, input_shape):
        if isinstance(input_shape, dict):
            return {**input_shape, "images": self.compute_output_shape(input_shape["images"])}
        axis = len(input_shape) - (2 if self.data_format == "channels_first" else 3)
        shape = list(input_shape)
        shape[axis : axis + 2] = self.output_size(tuple(shape[axis : axis + 2]))
        return tuple(shape)

    def get_config(self):
        return {
            **super().get_config(),
            "value_range": list(self.value_range),
            "seed": self.seed,
            "data_format": self.data_format,
        }


def _as_tensor(values):
    return torch.from_numpy(np.asarray(values, "float32" if values.dtype == "float64" else None))


def _limits(dtype):
    """The least and the greatest float32 that an integer dtype holds."""
    limits = np.iinfo(dtype)
    greatest = np.float32(limits.max)  # of 32 bits and more it is rounded up
    return float(limits.min), float(greatest if int(greatest) <= limits.max else np.nextafter(greatest, np.float32(0)))


def _number_of_copy():
    """An int32 that tells apart the copies of a layer that draw at the same time; 0 for the first, or the only one."""
    if BACKEND == "tensorflow":
        replica = tf.distribute.get_replica_context()
        return 0 if replica is None else replica.replica_id_in_sync_group
    worker = torch.utils.data.get_worker_info() if BACKEND == "torch" else None
    return 0 if worker is None else (worker.seed ^ worker.seed >> 31) & 0x7FFFFFFF  # another one in each epoch
