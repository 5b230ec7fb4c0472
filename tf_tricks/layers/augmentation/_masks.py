"""Parts of an image found from coordinates, and what they are filled with."""

import math
import numbers

from tf_tricks.layers.augmentation import _kernels, _random
from tf_tricks.layers.augmentation._colour import per_image
from tf_tricks.layers.augmentation._namespaces import OPS


def coordinates(xp, pixels):
    """Columns `(1, 1, width, 1)` and rows `(1, height, 1, 1)` as float32, the centre of the first pixel at 0."""
    _, height, width, _ = xp.shape(pixels)
    x, y = (xp.cast(xp.arange(size, dtype="int32"), "float32") for size in (width, height))
    return xp.reshape(x, (1, 1, -1, 1)), xp.reshape(y, (1, -1, 1, 1))


def rectangle(xp, pixels, box):
    """bool `(batch, height, width, 1)`: inside of `box`, a tuple (left, top, right, bottom) of `(batch,)` in pixels.

    Left and top belong to it, right and bottom do not.
    """
    x, y = coordinates(xp, pixels)
    left, top, right, bottom = (per_image(xp, each) for each in box)
    columns, rows = (xp.logical_and(v >= first, v < end) for v, first, end in ((x, left, right), (y, top, bottom)))
    return xp.logical_and(columns, rows)


def grid(xp, pixels, unit, share, offset, angle=None):
    """bool `(batch, height, width, 1)`: inside of one of the squares that repeat every `unit` pixels both ways.

    Args:
        xp: the namespace to compute in.
        pixels: images, for their size.
        unit: `(batch,)` > 0.
        share: number in [0, 1], the side of a square in units.
        offset: two `(batch,)` in [0, 1), where the first square begins, in units.
        angle: None or `(batch,)` in radians, by which the grid is turned about the centre of the image.
    """
    x, y = coordinates(xp, pixels)
    if angle is not None:
        _, height, width, _ = xp.shape(pixels)
        x, y = (v - (xp.cast(size, "float32") - 1.0) * 0.5 for v, size in ((x, width), (y, height)))
        cos, sin = per_image(xp, xp.cos(angle)), per_image(xp, xp.sin(angle))
        x, y = cos * x + sin * y, cos * y - sin * x
    per_unit = per_image(xp, 1.0 / unit)
    inside = []
    for v, begin in zip((x, y), offset, strict=True):
        v = v * per_unit + per_image(xp, begin)
        inside.append(v - xp.floor(v) < share)
    return xp.logical_and(*inside)


def check_fill(name, value):
    """None, a number, or a tuple of numbers, one for each channel.

    Raises:
        ValueError: it is none of them.
    """
    if value is None or _is_number(value):
        return value
    if isinstance(value, list | tuple) and value and all(map(_is_number, value)):
        return tuple(value)
    raise ValueError(
        f"`{name}` must be None (noise), a number, or a sequence of numbers, one for each channel. "
        f"Received: {name}={value!r}"
    )


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def filled(xp, pixels, mask, fill_value, salt, value_range, layer):
    """The pixels where `mask` is False, elsewhere `fill_value`, or noise from `salt` `(batch,)` where that is None.

    The noise is a normal number times the upper end of the range, clipped, as `keras.layers.RandomErasing` fills.
    """
    fill = _fill(xp, pixels, fill_value, salt, value_range, layer)
    if not _kernels.has_planes(xp, pixels):
        mask = _kernels.in_all_channels(xp, mask, pixels.shape[-1])
    return xp.where(mask, fill, pixels)


def filled_box(pixels, box, fill_value, salt, value_range, layer):
    """`filled` on Torch for the inside of `rectangle`, of one image."""
    left, top, right, bottom = (math.ceil(float(each)) for each in box)
    window = (slice(top, bottom), slice(left, right))
    changed = pixels.clone()
    changed[:, *window] = _fill(OPS, pixels, fill_value, salt, value_range, layer, window)
    return changed


def _fill(xp, pixels, fill_value, salt, value_range, layer, window=None):
    low, high = value_range
    if fill_value is None:
        return _kernels.clip(xp, _random.normal_field(xp, salt, pixels, high, window), low, high)
    if isinstance(fill_value, tuple) and len(fill_value) != pixels.shape[-1]:
        raise ValueError(
            f"{layer}: `fill_value` must have one number for each channel. Received: {len(fill_value)} numbers, "
            f"images of {pixels.shape[-1]} channels"
        )
    return xp.clip(xp.convert_to_tensor(fill_value, dtype="float32"), low, high)
