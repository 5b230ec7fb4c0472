"""Runs of neighbours in a composition that share one pass over the pixels.

A run is a stage as `AugmentationLayer.stages` describes it. A stage with the method `run` is not compiled here: it is
given `(xp, images, others, parameters)` and returns `(images, others)`.
"""

import functools
import inspect

from tf_tricks._backend import BACKEND
from tf_tricks.layers.augmentation import _geometry, _loops
from tf_tricks.layers.augmentation._inputs import map_nest
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._warp import Warp
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation, per_image


def plan(layers, probabilities):
    """The runs of a list of layers."""
    runs = []
    for number, (layer, probability) in enumerate(zip(layers, probabilities, strict=True)):
        member = (number, layer, probability)
        if not (runs and runs[-1].takes(layer)):
            runs.append(next(run for run in (WarpRun, PixelRun, Alone, Foreign) if run.can(layer))())
        runs[-1].members.append(member)
    return runs


class Run:
    """Members that share a pass: a list of (number in the composition, layer, probability)."""

    kind = object

    def __init__(self):
        self.members = []

    @classmethod
    def can(cls, layer):
        """Is this the kind of run for a layer?"""
        return isinstance(layer, cls.kind)

    def takes(self, layer):
        """Can this run go on with a layer?"""
        return self.can(layer)

    @functools.cached_property
    def by_image(self):
        return self._has("by_image")

    @functools.cached_property
    def widens(self):
        return self._has("widens")

    @functools.cached_property
    def mixes_images(self):
        return self._has("mixes_images")

    @property
    def rereads(self):
        return self.members[0][1].rereads

    def _has(self, name):
        """Has a member, or a stage of it, this property of `AugmentationLayer`?"""
        return any(getattr(stage, name) for _, layer, _ in self.members for stage in layer.stages())

    def transform_others(self, xp, others, parameters, size):
        return others

    def output_size(self, size):
        for _, layer, _ in self.members:
            size = layer.output_size(size)
        return size

    def at_rest(self, xp, images, others):
        for _, layer, _ in self.members:
            images, others = layer.at_rest(xp, images, others)
        return images, others

    def __str__(self):
        parts = []
        for _, layer, probability in self.members:
            parts.append(type(layer).__name__ + (f" (p={probability:g})" if probability < 1.0 else ""))
        return ", ".join(parts)


class WarpRun(Run):
    """Layers that move pixels: one matrix, one resampling."""

    kind = GeometricAugmentation

    def takes(self, layer):
        return self.can(layer) and all(layer.fills_like(member) for _, member, _ in self.members)

    @functools.cached_property
    def _warp(self):
        return Warp([layer for _, layer, _ in self.members])

    def draw(self, xp, draws, size):
        matrix, parameters = None, {}
        for number, layer, probability in self.members:
            mine = draws.child(number)
            parameters = layer.draw(xp, mine, size)
            drawn = parameters["matrix"]
            if probability < 1.0:
                kept = mine.chance(probability)
                pixels = tuple(xp.cast(each, "float32") for each in size)
                drawn = _geometry.choose(xp, kept, drawn, layer.still(xp, drawn[:, 0, 0], pixels))
            matrix = drawn if matrix is None else xp.matmul(matrix, drawn)
            size = layer.output_size(size)
        return {**(parameters if len(self.members) == 1 else {}), "matrix": matrix}

    def transform(self, xp, images, parameters):
        if len(self.members) == 1:
            return self.members[0][1].transform(xp, images, parameters)
        return self._warp.images(xp, images, parameters["matrix"])

    def transform_others(self, xp, others, parameters, size):
        return self._warp.others(xp, others, parameters["matrix"], size)

    def __str__(self):
        return f"one resampling: {super().__str__()}"


class PixelRun(Run):
    """Layers that change values: one after the other within one pass."""

    kind = PixelAugmentation

    def draw(self, xp, draws, size):
        drawn = []
        for number, layer, probability in self.members:
            mine = draws.child(number)
            parameters = layer.draw(xp, mine, size)
            drawn.append((parameters, mine.chance(probability)) if probability < 1.0 else (parameters,))
        return drawn

    def transform(self, xp, images, parameters):
        pixels = xp.cast(images, "float32")
        for (_, layer, _), mine, following in zip(self.members, parameters, [*self.members[1:], None], strict=True):
            change = functools.partial(self._change, xp, layer, pixels, *mine)
            pixels = _loops.settled(xp, change) if following and following[1].rereads else change()
        return pixels

    def _change(self, xp, layer, pixels, drawn, kept=None):
        changed = layer.apply(xp, pixels, drawn)
        return changed if kept is None else xp.where(per_image(xp, kept), changed, pixels)

    def __str__(self):
        return f"values: {super().__str__()}"


class Alone(Run):
    """A layer of another kind: a pass of its own, or, for a composition, its passes in one."""

    kind = AugmentationLayer

    def takes(self, layer):
        return False

    def draw(self, xp, draws, size):
        ((number, layer, probability),) = self.members
        mine = draws.child(number)
        drawn = []
        for stage in layer.stages():
            drawn.append(stage.draw(xp, mine, size))
            size = stage.output_size(size)
        if probability == 1.0:
            return {"drawn": drawn}
        kept = mine.child(-2).chance(probability)  # a number that no member of a composition has
        if len(drawn) == 1 and (weakened := layer.without(xp, drawn[0], kept)) is not None:
            return {"drawn": [weakened]}
        return {"drawn": drawn, "kept": kept}

    def transform(self, xp, images, parameters):
        changed = images
        for stage, drawn in zip(self._stages, parameters["drawn"], strict=True):
            changed = stage.transform(xp, changed, drawn)
        return choose(xp, parameters, changed, images)

    def transform_others(self, xp, others, parameters, size):
        changed = others
        for stage, drawn in zip(self._stages, parameters["drawn"], strict=True):
            changed = stage.transform_others(xp, changed, drawn, size)
            size = stage.output_size(size)
        return choose(xp, parameters, changed, others)

    @property
    def _stages(self):
        return self.members[0][1].stages()

    def __str__(self):
        return f"on its own: {super().__str__()}"


class Foreign(Run):
    """A layer of Keras, or the user's: run as it is, outside of what we compile, with random numbers of its own."""

    def takes(self, layer):
        return False

    def draw(self, xp, draws, size):
        ((number, _, probability),) = self.members
        # Not an empty dict: a nest that holds no tensor is no argument of a compiled function.
        return {"kept": draws.child(number).chance(probability)}

    def run(self, xp, images, others, parameters, training=True):
        ((_, layer, probability),) = self.members
        first = getattr(layer, "data_format", None) == "channels_first"
        given = xp.transpose(images, (0, 3, 1, 2)) if first else images
        if xp is OPS and BACKEND == "torch":
            given = given.clone()  # some layers of Keras write into what they are given
        arguments = {"training": training} if "training" in inspect.signature(layer.call).parameters else {}
        # Keras's augmentation layers take and give the whole dict; a layer such as `Rescaling` takes images only.
        if others and hasattr(layer, "transform_bounding_boxes"):
            taken = map_nest(lambda value: value, others)
            masks = taken.get("segmentation_masks")
            if turned := first and masks is not None and len(masks.shape) == 4:
                taken["segmentation_masks"] = xp.transpose(masks, (0, 3, 1, 2))
            result = dict(layer({**taken, "images": given}, **arguments))
            changed = result.pop("images")
            if turned:
                result["segmentation_masks"] = xp.transpose(result["segmentation_masks"], (0, 2, 3, 1))
        else:
            changed, result = layer(given, **arguments), others
        changed = xp.transpose(changed, (0, 2, 3, 1)) if first else changed
        if probability == 1.0 or not training:
            return changed, result
        return choose(xp, parameters, changed, images), choose(xp, parameters, result, others)

    def output_size(self, size):
        ((_, layer, _),) = self.members
        first = getattr(layer, "data_format", None) == "channels_first"
        shape = layer.compute_output_shape((1, 3, *size) if first else (1, *size, 3))
        return tuple(shape[2:4] if first else shape[1:3])

    def at_rest(self, xp, images, others):
        return self.run(xp, images, others, {}, training=False)

    def __str__(self):
        return f"as it is: {super().__str__()}"


def choose(xp, parameters, changed, otherwise):
    """Each leaf of a nest `changed`, for the images for which `parameters["kept"]`, if it is there, is True."""
    if "kept" not in parameters:
        return changed
    if isinstance(changed, dict):
        return {key: choose(xp, parameters, value, otherwise[key]) for key, value in changed.items()}
    kept = xp.reshape(parameters["kept"], [-1] + [1] * (len(changed.shape) - 1))
    return xp.where(kept, changed, xp.cast(otherwise, changed.dtype))
