"""Is an array of pictures read in the order of axes in which it was written?

In a picture neighbours are alike. A `reshape` that takes (channels, height, width) for (height, width, channels) keeps
all numbers and mixes up the neighbours, and so does every other wrong order, so the right one is the smoothest.
"""

import itertools

import numpy as np

from tf_tricks.debug._result import Finding

ROUGH, RATIO = 0.5, 2.0  # as rough as this, of 1 for white noise, no picture is; by so much the right order is smoother
CHANNELS = (1, 3, 4)


def roughness(images):
    """float, 0 for flat pictures and 1 for white noise: how much neighbours differ, of all that pixels differ.

    Args:
        images: array (n, height, width, channels).
    """
    images = np.asarray(images, "float64")
    variance = images.var(axis=(1, 2)).mean()
    if variance == 0:
        return 0.0
    along = [np.mean(np.diff(images, axis=axis) ** 2) for axis in (1, 2) if images.shape[axis] > 1]
    return float(np.mean(along) / (2 * variance)) if along else 1.0


def orders(shape):
    """All orders of axes in which the numbers of a picture of `shape` may have been written, its own one first."""
    found = [(0, 1, 2)]
    for order in itertools.permutations(range(3)):
        # Two axes of one length, or an axis of one entry, make orders that give the same picture, maybe transposed.
        lengths = [shape[axis] for axis in order]
        same = any(_like(lengths, order, [shape[a] for a in other], other) for other in found)
        if not same:
            found.append(order)
    return found


def _like(lengths, order, other_lengths, other):
    kept = [axis for axis, length in zip(order, lengths, strict=True) if length > 1]
    others = [axis for axis, length in zip(other, other_lengths, strict=True) if length > 1]
    channel = kept.index(2) if 2 in kept else None
    return channel == (others.index(2) if 2 in others else None) and [n for n in lengths if n > 1] == [
        n for n in other_lengths if n > 1
    ]


def read_as(images, order):
    """(n, height, width, channels) from numbers that were written in the given order of these axes."""
    n, shape = len(images), images.shape[1:]
    written = np.reshape(images, (n, *(shape[axis] for axis in order)))
    return np.transpose(written, (0, *(1 + order.index(axis) for axis in range(3))))


def scrambled(name, images, where=""):
    """The finding that another order of axes makes smoother pictures, or None. `images`: (n, h, w, c)."""
    h, w, c = images.shape[1:]
    if min(h, w) < 4 or not np.isfinite(images).all():
        return None
    found = {order: roughness(read_as(images, order)) for order in orders((h, w, c))}
    own = found[0, 1, 2]
    order, best = min(found.items(), key=lambda item: item[1])
    if own < RATIO * best or best > ROUGH:
        return None
    words = ("height", "width", "channels")
    written = ", ".join(words[axis] for axis in order)
    shape = tuple(images.shape[1 + axis] for axis in order)
    back = tuple(1 + order.index(axis) for axis in range(3))
    return Finding(
        "axes_scrambled",
        f"`{name}`{where} looks scrambled: read as (height, width, channels) = {(h, w, c)} neighbours differ by "
        f"{own:.2f} of what noise does, read as ({written}) by {best:.2f}. The numbers were written in that order: "
        f"`reshape` to (n, {', '.join(map(str, shape))}), then `transpose(0, {', '.join(map(str, back))})`.",
        evidence={"roughness": own, "smoothest": best, "order": written},
    )


def channels_first(name, images, data_format, is_fault):
    """The finding that pictures (n, c, h, w) are read as channels-last, or None."""
    _, c, h, w = images.shape
    if data_format != "channels_last" or c not in CHANNELS or min(h, w) < 8 or not np.isfinite(images).all():
        return None
    smooth = roughness(np.transpose(images, (0, 2, 3, 1)))
    if smooth > ROUGH:
        return None
    return Finding(
        "channels_first",
        f"`{name}` of shape (n, {c}, {h}, {w}) has its channels first (along the last two axes neighbours differ by "
        f"{smooth:.2f} of what noise does), but is read as channels last. Use `np.transpose({name}, (0, 2, 3, 1))`.",
        is_fault=is_fault,
        evidence={"roughness": smooth},
    )
