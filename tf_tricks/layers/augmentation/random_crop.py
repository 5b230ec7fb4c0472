"""RandomCrop, and the base of the layers that show a window of each image."""

import keras

from tf_tricks._checks import check_integer
from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation import _geometry, _kernels
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._inputs import is_ragged, map_nest, with_signed_labels, without_ragged
from tf_tricks.layers.augmentation._namespaces import namespace_of
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation


class Cropping(GeometricAugmentation):
    """A layer that shows a window of each image, in a size of its own, also when nothing is to be augmented.

    Args:
        height, width: int >= 1, the size of what comes out, in pixels.
    """

    looks_outside = False
    changes_at_rest = True

    def __init__(self, height, width, **kwargs):
        # Half a pixel beyond the edge, where a window is enlarged, lies what is at the edge.
        kwargs.setdefault("fill_mode", "nearest")
        super().__init__(**kwargs)
        self.height = check_integer("height", height, 1)
        self.width = check_integer("width", width, 1)
        self._at_rest = Compiled(self.transform)

    def output_size(self, size):
        return self.height, self.width

    def still(self, xp, like, size):
        return self.centre(xp, like, size)

    def centre(self, xp, like, size):
        """The largest window of the aspect of the output, in the middle, resized."""
        height, width = (xp.ones_like(like) * each for each in size)
        shown_width = xp.clip(xp.floor(height * (self.width / self.height)), xp.ones_like(width), width)
        shown_height = xp.clip(xp.floor(width * (self.height / self.width)), xp.ones_like(height), height)
        return self._middle(xp, shown_width, shown_height, width, height)

    def _middle(self, xp, shown_width, shown_height, width, height):
        left, top = xp.floor((width - shown_width) * 0.5), xp.floor((height - shown_height) * 0.5)
        return _geometry.window(xp, left, top, shown_width, shown_height, (self.height, self.width))

    def at_rest(self, xp, images, others):
        batch, *size = xp.shape(images)[:3]
        like = xp.ones_like(xp.cast(xp.arange(batch, dtype="int32"), "float32"))
        parameters = {"matrix": self.still(xp, like, tuple(xp.cast(each, "float32") for each in size))}
        others = self.transform_others(xp, others, parameters, tuple(size)) if others else others
        return self._at_rest(xp, images, parameters), others

    def call_ragged(self, data, training):
        tf, is_dict = tensorflow(), isinstance(data, dict)
        nest = without_ragged(data, type(self).__name__) if is_dict else {"images": data}
        nest = map_nest(lambda value: value if is_ragged(value) else tf.convert_to_tensor(value), nest)
        nest = with_signed_labels(namespace_of(data["images"] if is_dict else data), nest)

        def one(values):
            values = map_nest(lambda value: value.to_tensor() if is_ragged(value) else value, values)
            return self(values, training=training)

        spec = map_nest(lambda each: tf.TensorSpec(each.shape[1:], each.dtype), self.compute_output_spec(nest))
        # One after the other, so that each image takes the next number of the generator.
        result = tf.map_fn(one, nest, fn_output_signature=spec, parallel_iterations=1)
        return result if is_dict else result["images"]

    def get_config(self):
        return {**super().get_config(), "height": self.height, "width": self.width}


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomCrop(Cropping):
    """Cut a window out of each image, at a random place of its own.

    Takes the arguments of `keras.layers.RandomCrop`, which cuts all images of a batch at one place. When not training
    it cuts out of the middle. Images that are smaller than the window in one direction are not cut at random: the
    largest part of the window's aspect, from the middle, is resized to it.

    Args:
        height, width: int >= 1, the size of the window, in pixels.
        seed: None or int, the same seed gives the same images.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        bounding_box_format, min_visibility: as in `RandomRotation`.
        value_range, dtype: as for every augmentation layer.
    Shape:
        `(batch, height_in, width_in, channels)`, or without `batch`, or a dict with the key "images" ->
        `(batch, height, width, channels)`. In a dict masks, boxes and keypoints follow, as in `RandomRotation`.
    Raises:
        ValueError: `height` or `width` is below 1.
        TypeError: `height` or `width` is not an int.
    Reference:
        Krizhevsky, Sutskever and Hinton (2012), ImageNet Classification with Deep Convolutional Neural Networks,
        section 4.1.
    Example:
        >>> layer = RandomCrop(6, 4, seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 6, 4, 3)
    """

    exact = True

    def __init__(self, height, width, seed=None, data_format=None, name=None, **kwargs):
        super().__init__(height, width, seed=seed, data_format=data_format, name=name, **kwargs)

    def is_exact(self, size):
        known = all(isinstance(each, int) for each in size)
        return known and size[0] >= self.height and size[1] >= self.width

    def matrix(self, xp, draws, size):
        height, width = size
        # One number more than there are places would need a draw of exactly 1.
        top = xp.floor(draws.uniform() * (height - self.height + 1.0))
        left = xp.floor(draws.uniform() * (width - self.width + 1.0))
        return self._or_resized(xp, left, top, size)

    def still(self, xp, like, size):
        height, width = size
        top, left = xp.floor((height - self.height) * 0.5), xp.floor((width - self.width) * 0.5)
        return self._or_resized(xp, like * left, like * top, size)

    def _or_resized(self, xp, left, top, size):
        like = xp.ones_like(left)
        cut = _geometry.window(xp, left, top, like * self.width, like * self.height, (self.height, self.width))
        fits = xp.logical_and(like * size[0] >= self.height, like * size[1] >= self.width)
        return _geometry.choose(xp, fits, cut, self.centre(xp, like, size))

    def transform(self, xp, images, parameters):
        if not self.is_exact(tuple(xp.shape(images)[1:3])):
            return super().transform(xp, images, parameters)
        matrix = parameters["matrix"]
        left, top = (xp.cast(xp.round(matrix[:, axis, 2]), "int32") for axis in (0, 1))
        return _kernels.windows(xp, images, top, left, (self.height, self.width))
