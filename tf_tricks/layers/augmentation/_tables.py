"""Changes of the values of a pixel that no matrix makes, each image with an amount of its own; plain functions.

All take `(xp, pixels, amount, value_range)`: float32 `(batch, height, width, channels)` within `value_range`, and a
float32 `(batch,)`; they return the same shape, within `value_range` if the pixels are. They depend on nothing but the
image itself: neighbours in the batch play no part.
"""

from tf_tricks.layers.augmentation import _kernels
from tf_tricks.layers.augmentation._colour import per_image

LEVELS = 256  # what 8 bits hold; the tables count in these steps whatever the range


def posterise(xp, pixels, amount, value_range):
    """Keep `amount` bits, 1 to 8, of each value: the rest is cut off."""
    step = per_image(xp, xp.exp(xp.round(8.0 - amount) * _LOG_2))
    step = xp.round(step)  # `exp` is not exact, a power of two is
    kept = xp.floor(_whole_levels(xp, pixels, value_range) / step) * step
    return _kernels.clip(xp, _from_levels(kept, value_range), *value_range)


def solarise(xp, pixels, amount, value_range):
    """Invert the values from `amount` on, a share of the range: 0 inverts all, above 1 none."""
    low, high = value_range
    threshold = per_image(xp, amount) * (high - low) + low
    return xp.where(pixels < threshold, pixels, (low + high) - pixels)


def auto_contrast(xp, pixels, amount, value_range):
    """Stretch each channel over the whole range, to the share `amount` in [0, 1]; a flat channel stays as it is."""
    low, high = value_range
    if 0 in pixels.shape:  # no image has no least value, and Keras refuses to look for it
        return pixels
    least, most = (each(each(pixels, axis=1), axis=1)[:, None, None, :] for each in (xp.min, xp.max))
    flat = most <= least
    scale = (high - low) / xp.where(flat, xp.ones_like(most), most - least)
    stretched = (pixels - least) * scale + low
    return _blend(xp, pixels, xp.where(flat, pixels, stretched), amount, value_range)


def equalise(xp, pixels, amount, value_range):
    """Spread the levels of each channel evenly (histogram equalisation), to the share `amount` in [0, 1].

    A channel of one level stays as it is.
    """
    if 0 in pixels.shape:
        return pixels
    batch, height, width, channels = xp.shape(pixels)
    levels = xp.cast(_whole_levels(xp, pixels, value_range), "int32")
    # One table for each channel of each image: their numbers, and the places where they begin.
    image = xp.reshape(xp.arange(batch, dtype="int32"), (-1, 1, 1, 1)) * channels
    entry = (image + xp.reshape(xp.arange(channels, dtype="int32"), (1, 1, 1, -1))) * LEVELS + levels
    entry = xp.reshape(entry, (-1,))
    counts = xp.segment_sum(xp.ones_like(entry), entry, num_segments=batch * channels * LEVELS)
    counts = xp.reshape(counts, (-1, channels, LEVELS))
    below = xp.cumsum(counts, axis=-1)
    total = xp.cast(height * width, "int32")
    first = xp.min(xp.where(below > 0, below, total), axis=-1)[..., None]  # how often the darkest level occurs
    span = xp.cast(xp.maximum(total - first, 1), "float32")
    table = xp.round(xp.cast(below - first, "float32") * (LEVELS - 1.0) / span)
    flat = first >= total
    table = xp.where(flat, xp.ones_like(table) * -1.0, table)
    found = xp.reshape(xp.take(xp.reshape(table, (-1,)), entry, axis=0), (-1, height, width, channels))
    spread = xp.where(found < 0.0, pixels, _from_levels(found, value_range))
    return _blend(xp, pixels, spread, amount, value_range)


def sharpness(xp, pixels, amount, value_range):
    """Move between a smoothed image (`amount` 0), the image (1) and beyond (2).

    The smoothing is Pillow's: the 3x3 mean with the centre counted five times; the border of the image stays.
    """
    inner, around = zip(*(_without_border(xp, size) for size in xp.shape(pixels)[1:3]), strict=True)
    # Summed where all neighbours exist, and only then put among zeros: XLA recomputes what overlaps in a padded sum.
    smooth = sum(pixels[:, i : inner[0] + i] for i in range(3))
    smooth = sum(smooth[:, :, i : inner[1] + i] for i in range(3))
    smooth = xp.pad(smooth, [(0, 0), *around, (0, 0)])
    inside = True
    for axis, size in enumerate(xp.shape(pixels)[1:3], 1):
        place = xp.reshape(xp.arange(size, dtype="int32"), [-1 if i == axis else 1 for i in range(4)])
        inside = xp.logical_and(inside, xp.logical_and(place > 0, place < size - 1))
    smooth = (smooth + 4.0 * pixels) * (1.0 / 13.0)
    changed = smooth + (pixels - smooth) * per_image(xp, amount)
    return _kernels.clip(xp, xp.where(inside, changed, pixels), *value_range)


_LOG_2 = 0.6931471805599453


def _blend(xp, pixels, changed, amount, value_range):
    # Clipped, because rounding may lead out of the range by one digit.
    return _kernels.clip(xp, pixels + (changed - pixels) * per_image(xp, amount), *value_range)


def _whole_levels(xp, pixels, value_range):
    """The pixels as whole numbers 0..255, float32."""
    low, high = value_range
    # Without the small shift 3 / 255 would become 2: its product with 255 is a little below 3.
    levels = xp.floor((pixels - low) * ((LEVELS - 1) / (high - low)) + 1e-3)
    return _kernels.clip(xp, levels, 0.0, LEVELS - 1.0)


def _from_levels(levels, value_range):
    low, high = value_range
    return levels * ((high - low) / (LEVELS - 1)) + low


def _without_border(xp, size):
    """The length of an axis without its two ends, and how much to add to have it whole again."""
    inner = max(size - 2, 0) if isinstance(size, int) else xp.maximum(size - 2, 0)  # slices need an int if there is one
    return inner, (1, size - inner - 1)
