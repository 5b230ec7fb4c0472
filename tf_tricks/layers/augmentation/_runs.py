"""Runs of neighbours in a composition that share one pass over the pixels.

A run is a stage as `AugmentationLayer.stages` describes it.
"""

import functools
import textwrap

from tf_tricks.layers.augmentation import _geometry, _kernels, _loops
from tf_tricks.layers.augmentation._warp import Warp
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation
from tf_tricks.layers.augmentation.random_crop import Cropping


class Run:
    """Members that share a pass: a list of (number in the composition, layer, probability)."""

    kind = object

    def __init__(self):
        self.members = []

    @classmethod
    def can(cls, layer):
        """Is this the kind of run for a layer?"""
        return isinstance(layer, cls.kind)

    @classmethod
    def of(cls, layer):
        """The runs that begin with a layer, without members yet."""
        return [cls()]

    def takes(self, layer):
        """Can this run go on with a layer?"""
        return self.can(layer)

    @functools.cached_property
    def by_image(self):
        found = {stage.by_image for _, layer, _ in self.members for stage in layer.stages()}
        return next((each for each in ("frugal", "fast") if each in found), None)

    @functools.cached_property
    def widens(self):
        return self._has("widens")

    @functools.cached_property
    def mixes_images(self):
        return self._has("mixes_images")

    @functools.cached_property
    def moves_pixels(self):
        return self._has("moves_pixels")

    @functools.cached_property
    def changes_at_rest(self):
        return self._has("changes_at_rest")

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

    def spec_of(self, name, shape, dtype):
        for _, layer, _ in self.members:
            shape, dtype = layer.spec_of(name, shape, dtype)
        return shape, dtype

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
        if not self.can(layer) or not all(layer.fills_like(member) for _, member, _ in self.members):
            return False
        # In one pass it would see what was cut off instead of what it fills in.
        return not (layer.looks_outside and any(isinstance(member, Cropping) for _, member, _ in self.members))

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

    def without(self, xp, parameters, kept):
        matrix = parameters["matrix"]
        still = _geometry.identity(xp, matrix[:, 0, 0])  # what changes the size is never left out
        return {**parameters, "matrix": _geometry.choose(xp, kept, matrix, still)}

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

    def without(self, xp, parameters, kept):
        return [(drawn, xp.logical_and(kept, before[0]) if before else kept) for drawn, *before in parameters]

    def transform(self, xp, images, parameters):
        in_planes = any(layer.in_planes for _, layer, _ in self.members)
        pixels = _kernels.planes(xp, images) if in_planes else xp.cast(images, "float32")
        for (_, layer, _), mine, following in zip(self.members, parameters, [*self.members[1:], None], strict=True):
            change = functools.partial(self._change, xp, layer, pixels, *mine)
            pixels = _loops.settled(xp, change) if following and following[1].rereads else change()
        return pixels

    def _change(self, xp, layer, pixels, drawn, kept=None):
        change = functools.partial(layer.apply, xp)
        return change(pixels, drawn) if kept is None else _loops.where(xp, kept, change, pixels, drawn)

    def __str__(self):
        return f"values: {super().__str__()}"


class Alone(Run):
    """A layer of another kind: a pass of its own, or, for a composition, its passes in one.

    Of a layer that needs several passes there is one of these for each: `step` says which.
    """

    kind = AugmentationLayer

    def __init__(self, step=None):
        super().__init__()
        self.step = step

    @classmethod
    def of(cls, layer):
        """The runs of a layer."""
        steps = 1 if hasattr(layer, "summary_text") else len(layer.stages())
        return [cls(step) for step in range(steps)] if steps > 1 else [cls()]

    def takes(self, layer):
        return False

    @property
    def rereads(self):
        return self._stages[0].rereads

    def output_size(self, size):
        for stage in self._stages:
            size = stage.output_size(size)
        return size

    def spec_of(self, name, shape, dtype):
        return (shape, dtype) if self.step else super().spec_of(name, shape, dtype)

    def at_rest(self, xp, images, others):
        return (images, others) if self.step else super().at_rest(xp, images, others)

    def draw(self, xp, draws, size):
        ((number, layer, probability),) = self.members
        mine = draws.child(number)
        drawn = []
        for stage in layer.stages():
            drawn.append(stage.draw(xp, mine, size))
            size = stage.output_size(size)
        drawn = self._own(drawn)
        if probability == 1.0:
            return {"drawn": drawn}
        kept = mine.child(-2).chance(probability)  # a number that no member of a composition has
        return self.without(xp, {"drawn": drawn}, kept)

    def without(self, xp, parameters, kept):
        drawn = parameters["drawn"]
        # Labels and boxes of layers that mix images come out in another form: they cannot be chosen from what came in.
        weakened = [stage.without(xp, mine, kept) for stage, mine in zip(self._stages, drawn, strict=True)]
        if all(each is not None for each in weakened):
            return {**parameters, "drawn": weakened}
        return {**parameters, "kept": xp.logical_and(kept, parameters["kept"]) if "kept" in parameters else kept}

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
        return self._own(self.members[0][1].stages())

    def _own(self, each):
        """Of a list with something for each stage of the layer, what belongs to this run."""
        return each if self.step is None else [each[self.step]]

    def __str__(self):
        layer = self.members[0][1]
        text = f"on its own: {super().__str__()}"
        if hasattr(layer, "summary_text"):
            return f"{text}\n{textwrap.indent(layer.summary_text(), '    ')}"
        return text + ("" if self.step is None else f" (step {self.step + 1} of {len(layer.stages())})")


def choose(xp, parameters, changed, otherwise):
    """Each leaf of a nest `changed`, for the images for which `parameters["kept"]`, if it is there, is True."""
    if "kept" not in parameters:
        return changed
    if isinstance(changed, dict):
        return {key: choose(xp, parameters, value, otherwise[key]) for key, value in changed.items()}
    kept = xp.reshape(parameters["kept"], [-1] + [1] * (len(changed.shape) - 1))
    return xp.where(kept, changed, xp.cast(otherwise, changed.dtype))
