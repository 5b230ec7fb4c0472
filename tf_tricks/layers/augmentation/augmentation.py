"""Augmentation: several augmentation layers in as few passes over the pixels as possible."""

import keras

from tf_tricks._checks import check_instance, check_number, check_range
from tf_tricks.layers.augmentation import _preview
from tf_tricks.layers.augmentation._runs import plan
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class Augmentation(AugmentationLayer):
    """Run augmentation layers one after the other, neighbours fused.

    Neighbours that move pixels become one matrix for each image and one resampling, which is faster, and sharper, than
    one each; neighbours that change values share a pass. The order stays. What a member draws depends on the seed and
    on its place in the list, not on what the others draw; its own seed and dtype play no part.

    Args:
        layers: list of layers: augmentation layers of tf_tricks, another `Augmentation` among them, or layers of Keras,
            which run as they are, in their place, and draw from seeds of their own.
        probability: float in [0, 1], or a list of one for each member: how often an image gets it. A member that
            changes the size of the images needs 1.
        value_range: None or (low, high), the range of the pixels: that of all members. None: theirs.
        seed: None or int, for the members that are ours.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        dtype: None, a dtype or a policy, that of the images that come out. "uint8" rounds and clips, once, at the end.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images" -> the same.
    Raises:
        TypeError: a member is no layer, or `probability` is no number.
        ValueError: there are no members, `probability` lies outside [0, 1] or is a list of another length, or the value
            ranges differ.
    Reference:
        Wolberg (1990), Digital Image Warping, chapter 3: a chain of affine maps is an affine map.
    Example:
        >>> layer = Augmentation([RandomFlip("horizontal"), RandomRotation(0.1), RandomBrightness(0.2)], seed=1)
        >>> layer(np.zeros((2, 8, 8, 3)), training=True).shape == (2, 8, 8, 3)
        True
        >>> text = layer.summary()
        pass 1: one resampling: RandomFlip, RandomRotation
        pass 2: values: RandomBrightness
    """

    def __init__(self, layers, probability=1.0, value_range=None, seed=None, data_format=None, **kwargs):
        members = _check_members(layers)
        super().__init__(value_range=_common_range(members, value_range), seed=seed, data_format=data_format, **kwargs)
        self.layers = members
        self._given_range = None if value_range is None else self.value_range
        probabilities = _check_probabilities(probability, members)
        self.probability = probabilities if isinstance(probability, list | tuple) else probabilities[0]
        self._stages = plan(self.layers, probabilities)

    def stages(self):
        return list(self._stages)

    def output_size(self, size):
        for stage in self._stages:
            size = stage.output_size(size)
        return size

    def at_rest(self, xp, images, others):
        for stage in self._stages:
            images, others = stage.at_rest(xp, images, others)
        return images, others

    def spec_of(self, name, shape, dtype):
        for layer in self.layers:
            if isinstance(layer, AugmentationLayer):
                shape, dtype = layer.spec_of(name, shape, dtype)
        return shape, dtype

    def summary(self):
        """Print which members share a pass; returns the text."""
        text = self.summary_text()
        print(text)
        return text

    def summary_text(self):
        """What `summary` prints."""
        return "\n".join(f"pass {i}: {stage}" for i, stage in enumerate(self._stages, 1))

    def preview(self, images, columns=4, names=None):
        """A picture of images, each above several augmented versions of itself, with their boxes and masks.

        Args:
            images: images `(batch, height, width, channels)`, or a dict of them and what belongs to them.
            columns: int >= 1, how many images to show, from the first.
            names: None or list of str, the classes that integer labels stand for.
        Returns:
            A `matplotlib.figure.Figure`: a column for each image, the original on top.
        Raises:
            ImportError: matplotlib is not there.
        """
        return _preview.preview(self, images, columns, names)

    def get_config(self):
        return {
            **super().get_config(),
            "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers],
            "probability": list(self.probability) if isinstance(self.probability, list | tuple) else self.probability,
            "value_range": None if self._given_range is None else list(self._given_range),
        }

    @classmethod
    def from_config(cls, config):
        members = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
        return cls(**{**config, "layers": members})


def _check_members(layers):
    if not isinstance(layers, list | tuple):
        raise TypeError(f"`layers` must be a list of layers. Received: layers={layers!r}")
    if not layers:
        raise ValueError("`layers` must hold at least one layer. Received: layers=[]")
    for i, layer in enumerate(layers):
        check_instance(f"layers[{i}]", layer, keras.layers.Layer, "an augmentation layer or a layer of Keras")
        if isinstance(layer, Augmentation) and any(hasattr(stage, "run") for stage in layer.stages()):
            raise ValueError(
                f"`layers[{i}]` must not be an Augmentation that holds a layer of Keras: put that layer into the outer "
                f"one. Received: {layer.summary_text()}"
            )
    return list(layers)


def _check_probabilities(probability, members):
    """A list of floats, one for each member."""
    if isinstance(probability, list | tuple):
        if len(probability) != len(members):
            raise ValueError(
                f"`probability` must be a number or a list of one for each of the {len(members)} layers. "
                f"Received: probability={probability!r}"
            )
        named = {f"probability[{i}]": each for i, each in enumerate(probability)}
    else:
        named = {"probability": probability}
    checked = [check_number(name, each, above=0, below=1, closed="[]") for name, each in named.items()]
    if len(named) == 1 and not isinstance(probability, list | tuple):
        checked *= len(members)
    for layer, each in zip(members, checked, strict=True):
        if each < 1.0 and isinstance(layer, AugmentationLayer) and layer.output_size((31, 37)) != (31, 37):
            raise ValueError(
                f"`probability` must be 1 for {type(layer).__name__}, which changes the size of the images. "
                f"Received: probability={probability!r}"
            )
    return checked


def _common_range(members, value_range):
    """The value range of all members, or the one given."""
    # Where an image shows a pixel does not depend on the range of its values.
    ours = [m for m in members if isinstance(m, AugmentationLayer) and m.range_matters]
    ours = [m for m in ours if not isinstance(m, GeometricAugmentation)]
    ranges = [(type(layer).__name__, layer.value_range) for layer in ours]
    if value_range is not None:
        ranges.insert(0, ("the composition", check_range("value_range", value_range)))
    if len({each for _, each in ranges}) > 1:
        listed = ", ".join(f"{name}: {each}" for name, each in ranges)
        raise ValueError(f"`value_range` must be the same for all layers. Received: {listed}")
    return ranges[0][1] if ranges else (0, 255)
