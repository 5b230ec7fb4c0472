"""The base of all augmentation layers: draw a few numbers for each image, then one pass over the pixels."""

import functools
import zlib

import keras

from tf_tricks._checks import check_integer, check_one_of, check_optional, check_range
from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation import _loops, _random
from tf_tricks.layers.augmentation._compiled import Compiled, apart
from tf_tricks.layers.augmentation._inputs import are_masks_first, dtype_of_box_labels, is_ragged, pack, unpack
from tf_tricks.layers.augmentation._namespaces import OPS, namespace_of


class AugmentationLayer(keras.layers.Layer):
    """Change each image of a batch in a random way of its own, while training.

    A subclass draws its parameters in `draw` and uses them in `transform`, which XLA compiles, `transform_others` too.

    Args:
        value_range: (low, high), the range of the pixels.
        seed: None or int in [0, 2**31). The same seed gives the same numbers on every backend; layers of different
            classes draw different ones from it.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        dtype: None, a dtype or a policy: that of the images that come out. "uint8" rounds and clips.
    """

    range_matters = True  # does `value_range` change the result?

    # How the pass runs, where XLA compiles it for a CPU; see `_loops`.
    by_image = False  # faster image by image also where the layer is alone; several stages always are
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
        self.data_format = check_one_of(
            "data_format", data_format or keras.config.image_data_format(), ("channels_last", "channels_first")
        )
        self._generator = keras.random.SeedGenerator(self.seed)
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
        """What runs one after the other, each with a pass of its own: objects with the four methods above."""
        return [self]

    def without(self, xp, parameters, kept):
        """The parameters with those of the images for which `kept` `(batch,)` is False made to change nothing.

        None: there are no such parameters; the images are then chosen, changed or not.
        """
        return None

    # --- call ----------------------------------------------------------------------------------------------------

    def __call__(self, data, *args, **kwargs):
        images = data["images"] if isinstance(data, dict) and "images" in data else data
        if hasattr(images, "shape") and getattr(images.shape, "rank", 0) is None:  # Keras fails on such a tensor
            raise ValueError(
                f"{type(self).__name__}: images must have rank 3 or 4. Received: a tensor of unknown rank; call its "
                "`set_shape` first"
            )
        if namespace_of(images) is not OPS:
            # `Dataset.map` would have autograph rewrite all that a layer calls.
            return tensorflow().autograph.experimental.do_not_convert(self.call)(data, *args, **kwargs)
        return super().__call__(data, *args, **kwargs)

    def call(self, data, training=True):
        images = data["images"] if isinstance(data, dict) and "images" in data else data
        if is_ragged(images):
            return self.call_ragged(data, training)
        xp = namespace_of(images)
        inputs = unpack(xp, data, self.data_format, type(self).__name__)
        images, others = inputs.images, inputs.others
        if not training:
            return pack(xp, inputs, *self._unchanged(xp, images, others))
        key = self._key(xp)
        drawn = self._draw(xp, images, key)  # the images go along for their shape alone
        size = self._size_of(xp, images)
        stages = self.stages()
        for count, one_pass in self._plan(_loops.images_in_a_turn(xp, tuple(images.shape)) > 0):
            (mine, drawn), (here, stages) = ((each[:count], each[count:]) for each in (drawn, stages))
            if one_pass is None:
                images, others = self._run(xp, here[0], images, others, mine[0])
            else:
                images = one_pass(xp, images, (mine, key[0]))
            for stage, parameters in zip(here, mine, strict=True):
                if others and one_pass is not None:
                    others = stage.transform_others(xp, others, parameters, size)
                size = stage.output_size(size)
        return pack(xp, inputs, images, others)

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
        if type(self).at_rest is AugmentationLayer.at_rest:
            return self._finish(xp, images), others  # whatever the order of the axes
        images, others = self.at_rest(xp, self._channels_last(xp, images), others)
        return self._as_given(xp, self._finish(xp, images)), others

    def _draw_all(self, xp, images, key):
        # Two layers with the same seed, of different classes, are not to draw the same numbers.
        key = xp.bitwise_xor(key, zlib.crc32(type(self).__name__.encode()) & 0x7FFFFFFF)
        draws, drawn, size = _random.Draws(xp, key, xp.shape(images)[0]), [], self._size_of(xp, images)
        for stage in self.stages():
            drawn.append(stage.draw(xp, draws, size))
            size = stage.output_size(size)
        return drawn

    def _plan(self, in_turns):
        """List of (how many stages, what runs them in one pass); None: a stage that is not ours to compile."""
        kind = "in turns" if in_turns else "together"
        if kind not in self._passes:
            groups = []
            for stage in self.stages():
                alone = not in_turns or hasattr(stage, "run") or stage.mixes_images
                if alone or not groups or groups[-1][0]:
                    groups.append((alone, []))
                groups[-1][1].append(stage)
            plan, last = [], len(groups) - 1
            for i, (alone, stages) in enumerate(groups):
                if hasattr(stages[0], "run"):
                    plan.append((1, None))
                    continue
                is_known = i == last or any(stage.widens for stage in stages)  # the dtype of what a loop gives
                if not alone and is_known and (len(stages) > 1 or stages[0].by_image):
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
            return self._as_given(xp, self._finish(xp, images)) if is_last else xp.cast(images, "float32")

        def one_pass(xp, images, parameters):
            mine, number = parameters
            numbers = xp.arange(xp.shape(images)[0], dtype="int32") + number
            dtype = self.compute_dtype if is_last else "float32"
            return _loops.in_turns(xp, one_turn, images, [*mine, numbers], dtype)

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
        if self.compute_dtype == "uint8":
            images = xp.clip(xp.round(xp.cast(images, "float32")), 0.0, 255.0)
        return xp.cast(images, self.compute_dtype)

    def _key(self, xp):
        """int32 `(2,)`: the seed, and how often the layer was called."""
        if xp is OPS:
            return keras.ops.cast(self._generator.next(), "int32")
        tf = tensorflow()
        if self._counter is None:
            with tf.init_scope():
                self._counter = tf.Variable(0, dtype=tf.int32, trainable=False)
        state = keras.ops.convert_to_numpy(self._generator.state).astype("int64")
        return tf.stack([tf.constant(int(state[0]) & 0x7FFFFFFF, tf.int32), self._counter.assign_add(1) - 1])

    # --- Keras ---------------------------------------------------------------------------------------------------

    def build(self, input_shape):
        pass  # no weights

    def compute_output_spec(self, data, training=True):
        def spec(name, value):
            if isinstance(value, dict):
                return {key: spec(f"{name}/{key}", each) for key, each in value.items()}
            if name == "bounding_boxes/labels":
                return keras.KerasTensor(value.shape, dtype_of_box_labels(value.dtype))
            if name == "images":
                return keras.KerasTensor(self.compute_output_shape(value.shape), dtype=self.compute_dtype)
            return keras.KerasTensor(*self.spec_beside(data["images"].shape, name, tuple(value.shape), value.dtype))

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
        """(shape, dtype) of what comes out for what goes in under a key of `_inputs.KEYS` other than "images"."""
        if name == "segmentation_masks" and len(shape) in (3, 4):
            shape = (shape[0], *self.output_size(shape[1:3]), *shape[3:])
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
