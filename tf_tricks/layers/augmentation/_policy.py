"""The base of the policies: each image gets operations of its own, drawn from a list.

The images go through one by one, in a loop that XLA compiles, and of the operations only the one that was drawn runs.
On a CPU this is the fastest form by far: an image of 224 pixels a side stays in the cache from one operation to the
next, and no operation runs for nothing. Torch, which has no such loop, runs each operation on all images of a turn, or
of a small batch, that drew it.
"""

from tf_tricks._backend import BACKEND, torch
from tf_tricks._checks import check_number, check_one_of
from tf_tricks.layers.augmentation import _geometry, _kernels, _loops, _operations
from tf_tricks.layers.augmentation._boxes import FORMATS
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._resample import FILL_MODES, INTERPOLATIONS
from tf_tricks.layers.augmentation._warp import Warp
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer


class Policy(AugmentationLayer):
    """For each image `num_ops` of `operations`, each with a strength of its own.

    They follow one another in the order drawn, but for those that move pixels: they are combined and resample the image
    once, where the first of them stands.

    Args:
        operations: tuple of keys of `_operations.GEOMETRIC` and `_operations.VALUES`.
        num_ops: int >= 0.
        interpolation, fill_mode, fill_value, bounding_box_format: as in `GeometricAugmentation`.
    """

    moves_pixels = True
    widens = True
    by_image = "frugal"  # what a turn of the loop writes is finished: a quarter of the memory, for bytes

    # What `_warp.Warp` asks a layer that moves pixels.
    projective, exact, looks_outside, min_visibility, keypoint_pairs = False, False, True, 0.0, ()

    def __init__(
        self,
        operations,
        num_ops,
        interpolation="bilinear",
        fill_mode="reflect",
        fill_value=0.0,
        bounding_box_format=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._moves = [(i, name) for i, name in enumerate(operations) if name in _operations.GEOMETRIC]
        self._changes = [(i, name) for i, name in enumerate(operations) if name in _operations.VALUES]
        self._count = len(operations)
        self.num_ops = num_ops
        self.interpolation = check_one_of("interpolation", interpolation, INTERPOLATIONS)
        self.fill_mode = check_one_of("fill_mode", fill_mode, FILL_MODES)
        self.fill_value = check_number("fill_value", fill_value)
        self.bounding_box_format = check_one_of("bounding_box_format", bounding_box_format, (None, *FORMATS))
        self._warp = Warp((self,))

    def is_exact(self, size):
        return False  # asked by `Warp`

    def strength(self, xp, draws):
        """float32 `(batch,)` in [0, 1]."""
        raise NotImplementedError

    def amount(self, xp, name, strength):
        """What the operation `name` of `_operations.VALUES` does with a strength in [-1, 1]: `(batch,)`."""
        raise NotImplementedError

    def motion(self, xp, name, strengths, size):
        """The matrix of the operation `name` of `_operations.GEOMETRIC`, from two strengths in [-1, 1]."""
        raise NotImplementedError

    def draw(self, xp, draws, size):
        size = tuple(xp.cast(each, "float32") for each in size)
        zeros = draws.uniform(0.0, 0.0)
        matrix, moved = _geometry.identity(xp, zeros), zeros > 0.0
        steps, amounts = [], []
        for _ in range(self.num_ops):
            drawn = draws.integers(0, self._count)
            signed = [self._signed(xp, draws) for _ in range(2)]
            step, amount, moves = xp.zeros_like(drawn), zeros, zeros > 0.0
            for i, name in self._moves:
                mine = xp.equal(drawn, i)
                motion = xp.matmul(matrix, self.motion(xp, name, signed, size))
                matrix, moves = _geometry.choose(xp, mine, motion, matrix), xp.logical_or(moves, mine)
            step = xp.where(xp.logical_and(moves, xp.logical_not(moved)), xp.ones_like(step), step)
            moved = xp.logical_or(moved, moves)
            for branch, (i, name) in enumerate(self._changes, 2):
                mine = xp.equal(drawn, i)
                step = xp.where(mine, xp.ones_like(step) * branch, step)
                amount = xp.where(mine, self.amount(xp, name, signed[0]), amount)
            steps.append(step)
            amounts.append(amount)
        if not steps:
            return {"matrix": matrix}
        return {"matrix": matrix, "steps": xp.stack(steps, axis=-1), "amounts": xp.stack(amounts, axis=-1)}

    def _signed(self, xp, draws):
        strength = self.strength(xp, draws)
        return xp.where(draws.chance(0.5), strength, -strength)

    def without(self, xp, parameters, kept):
        still = _geometry.identity(xp, parameters["matrix"][:, 0, 0])
        weakened = {**parameters, "matrix": _geometry.choose(xp, kept, parameters["matrix"], still)}
        if self.num_ops:
            steps = parameters["steps"]
            weakened["steps"] = xp.where(kept[:, None], steps, xp.zeros_like(steps))
        return weakened

    def transform(self, xp, images, parameters):
        if images.shape[-1] not in (1, 3):
            number = images.shape[-1] or "an unknown number of"
            hint = "" if images.shape[-1] else "; call the tensor's `set_shape` first"
            raise ValueError(
                f"{type(self).__name__}: images must have 1 or 3 channels. Received: {number} channels{hint}"
            )
        if self.num_ops == 0:
            return xp.cast(images, "float32")
        if xp is OPS and BACKEND == "torch":
            return self._grouped(images, parameters)
        return _loops.one_by_one(xp, self._one, images, parameters, "float32")

    def transform_others(self, xp, others, parameters, size):
        return self._warp.others(xp, others, parameters["matrix"], size)

    def _branches(self, xp):
        """What a step may do, `(pixels, amount, matrix) -> pixels`: nothing, move pixels, or change values."""

        def branch(function):
            return lambda pixels, amount, matrix: _kernels.clip(
                xp, function(xp, pixels, amount, self.value_range), *self.value_range
            )

        changes = [branch(_operations.VALUES[name]) for _, name in self._changes]
        return [
            lambda pixels, amount, matrix: pixels,
            lambda pixels, amount, matrix: xp.cast(self._warp.images(xp, pixels, matrix), "float32"),
            *changes,
        ]

    def _one(self, xp, image, parameters):
        """A batch of one."""
        steps, amounts, matrix = (parameters[name] for name in ("steps", "amounts", "matrix"))

        def step(number, pixels):
            amount = xp.take(amounts, number, axis=1)
            return xp.switch(xp.take(steps, number, axis=1)[0], self._branches(xp), pixels, amount, matrix)

        # A loop: to compile one choice after another takes XLA ten seconds.
        return _loops.repeat(xp, self.num_ops, step, xp.cast(image, "float32"))

    def _grouped(self, images, parameters):
        """On Torch: the images that drew the same operation together."""
        steps, amounts, matrix = (parameters[name] for name in ("steps", "amounts", "matrix"))
        pixels, branches = _kernels.planes(OPS, images), self._branches(OPS)
        for number in range(self.num_ops):
            drawn, amount = steps[:, number], amounts[:, number]
            for which in sorted(set(drawn.tolist()) - {0}):  # none changes an image that drew another

                def change(pixels, parameters, branch=branches[which]):
                    return branch(pixels, *parameters)

                chosen = torch.nonzero(drawn == which)[:, 0]
                pixels = _loops.for_chosen(chosen, change, pixels, (amount, matrix))
        return pixels

    def get_config(self):
        return {
            **super().get_config(),
            "interpolation": self.interpolation,
            "fill_mode": self.fill_mode,
            "fill_value": self.fill_value,
            "bounding_box_format": self.bounding_box_format,
        }
