"""Augmentation: several augmentation layers in as few passes over the pixels as possible."""

import keras

from tf_tricks._checks import check_instance, check_number, check_range
from tf_tricks.layers.augmentation import _preview
from tf_tricks.layers.augmentation._foreign import Foreign
from tf_tricks.layers.augmentation._members import size_after
from tf_tricks.layers.augmentation._runs import Alone, PixelRun, WarpRun
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer

_SIZES = ((256, 320), (320, 256))  # a crop to one of them is found out by the other


@keras.saving.register_keras_serializable(package="tf_tricks")
class Augmentation(AugmentationLayer):
    """Run augmentation layers one after the other, neighbours fused.

    Neighbours that move pixels become one matrix for each image and one resampling, which is faster, and sharper, than
    one each; neighbours that change values share a pass. The order stays. Near the borders one resampling shows pixels
    that a chain would have lost: what one member moved out of the image, the next may move in again. Not so after a
    crop: a member that shows what lies outside of its image begins a new pass there, for which there is nothing beyond
    the crop.

    What a member draws depends on the seed and on its place in the list, not on what the others draw; its own seed and
    dtype play no part.

    Args:
        layers: list of layers: augmentation layers of tf_tricks, another `Augmentation` among them, or layers of Keras,
            which run as they are, in their place, and draw from seeds of their own. Keras's augmentation layers are
            given the whole dict, but move no keypoints; any other layer is given images only, of which it must not move
            the pixels if masks, boxes or keypoints belong to them.
        probability: float in [0, 1], or a list of one for each member: how often an image gets it. A member that
            changes the size of the images needs 1.
        value_range: None or (low, high), the range of the pixels. It changes nothing for the members, which have ranges
            of their own, but is compared with them, so that one that was forgotten is found. None: theirs.
        seed: None or int, for the members that are ours.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        dtype: None, a dtype or a policy, that of the images that come out. "uint8" rounds and clips, once, at the end.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images" -> the same.
    Raises:
        TypeError: a member is no layer, or `probability` is no number.
        ValueError: there are no members, `probability` lies outside [0, 1] or is a list of another length, or the value
            ranges differ; or, in a call, masks, boxes or keypoints would not follow the pixels through a layer of
            Keras.
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
        self.range_matters = value_range is not None or bool(_with_range(members))
        self.layers = members
        self._given_range = None if value_range is None else self.value_range
        probabilities = _check_probabilities(probability, members)
        self.probability = probabilities if isinstance(probability, list | tuple) else probabilities[0]
        self._stages = _runs(self.layers, probabilities)

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
        for stage in self._stages:
            shape, dtype = stage.spec_of(name, shape, dtype)
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
            A `matplotlib.figure.Figure`: a column for each image, the original on top. Values are shown within
            `value_range`, or, if no member has one that matters, within [0, 1], [0, 255] or the range that they have.
        Raises:
            ImportError: matplotlib is not there.
            ValueError: `images` is no batch, or an empty one, or there are boxes and no member knows their format.
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
        if each < 1.0 and any(size_after(layer, size) != size for size in _SIZES):
            raise ValueError(
                f"`probability` must be 1 for {type(layer).__name__}, which changes the size of the images. "
                f"Received: probability={probability!r}"
            )
    return checked


def _common_range(members, value_range):
    """The value range of all members, or the one given."""
    ranges = [(type(layer).__name__, layer.value_range) for layer in _with_range(members)]
    if value_range is not None:
        ranges.insert(0, ("the composition", check_range("value_range", value_range)))
    if len({each for _, each in ranges}) > 1:
        listed = ", ".join(f"{name}: {each}" for name, each in ranges)
        raise ValueError(f"`value_range` must be the same for all layers. Received: {listed}")
    return ranges[0][1] if ranges else (0, 255)


def _with_range(members):
    """Those whose result depends on their `value_range`."""
    return [member for member in members if isinstance(member, AugmentationLayer) and member.range_matters]


def _runs(layers, probabilities):
    """The runs of a list of layers."""
    runs = []
    for number, (layer, probability) in enumerate(zip(layers, probabilities, strict=True)):
        member = (number, layer, probability)
        if runs and runs[-1].takes(layer):
            runs[-1].members.append(member)
            continue
        kind = next(run for run in (WarpRun, PixelRun, Alone, Foreign) if run.can(layer))
        for run in kind.of(layer):
            run.members.append(member)
            runs.append(run)
    return runs
