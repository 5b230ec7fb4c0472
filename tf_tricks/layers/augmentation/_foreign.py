"""A member of a composition that is not ours: a stage with the method `run`.

It is given `(xp, images, others, parameters)` and returns `(images, others)`; what it does is not compiled here.
"""

import inspect

from tf_tricks._backend import BACKEND
from tf_tricks.layers.augmentation._inputs import map_nest
from tf_tricks.layers.augmentation._members import (
    check_keeps,
    check_keeps_size,
    is_channels_first,
    may_move,
    size_after,
    takes_dict,
)
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._runs import Run, choose


class Foreign(Run):
    """A layer of Keras, or the user's: run as it is, outside of what we compile, with random numbers of its own."""

    # `moves_pixels` says whether we move what belongs to the images; nobody knows what Keras does with them at rest.
    mixes_images, moves_pixels, changes_at_rest = False, False, True

    def __init__(self):
        super().__init__()
        self._sizes = {}

    def takes(self, layer):
        return False

    def draw(self, xp, draws, size):
        ((number, _, probability),) = self.members
        # Not an empty dict: a nest that holds no tensor is no argument of a compiled function.
        return {"kept": draws.child(number).chance(probability)}

    def run(self, xp, images, others, parameters, training=True):
        ((_, layer, probability),) = self.members
        check_keeps(layer, others)
        first = is_channels_first(layer)
        given = xp.transpose(images, (0, 3, 1, 2)) if first else images
        if xp is OPS and BACKEND == "torch":
            given = given.clone()  # some layers of Keras write into what they are given
        arguments = {"training": training} if "training" in inspect.signature(layer.call).parameters else {}
        if others and takes_dict(layer):
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
        if not takes_dict(layer):
            check_keeps_size(layer, images.shape, changed.shape, others)
        if probability == 1.0 or not training:
            return changed, result
        return choose(xp, parameters, changed, images), choose(xp, parameters, result, others)

    def output_size(self, size):
        size = tuple(size)
        if not all(isinstance(each, int | None) for each in size):
            return size_after(self.members[0][1], size)
        if size not in self._sizes:  # to ask may mean to trace the layer
            self._sizes[size] = size_after(self.members[0][1], size)
        return self._sizes[size]

    def spec_of(self, name, shape, dtype):
        layer = self.members[0][1]
        if not takes_dict(layer):
            return shape, dtype
        if name == "segmentation_masks" and len(shape) in (3, 4):
            shape = (shape[0], *self.output_size(shape[1:3]), *shape[3:])
        if name in ("segmentation_masks", "bounding_boxes/boxes") and may_move(layer):
            dtype = layer.compute_dtype
        return shape, dtype

    def at_rest(self, xp, images, others):
        return self.run(xp, images, others, {}, training=False)

    def __str__(self):
        return f"as it is: {super().__str__()}"
