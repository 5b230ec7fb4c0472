"""Arithmetic of colours: exact changes of pixels, and the linear ones as one 3x4 matrix for each image.

`pixels` are float32 `(batch, height, width, channels)`, a parameter is `(batch,)`. A matrix `(batch, 3, 4)` maps the
colour `(red, green, blue, 1)`; a chain of them is one matrix and so one multiplication for each value.
"""

import math

import numpy as np

from tf_tricks.layers.augmentation import _kernels

LUMA = (0.2989, 0.5870, 0.1140)  # as in `keras.ops.image.rgb_to_grayscale`
# From red, green, blue to luminance and two chromatic axes (NTSC 1953, as in `tf.image.rgb_to_yiq`).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.59590059, -0.27455667, -0.32134392], [0.21153661, -0.52273617, 0.31119955]])
_ROWS = 8  # so many at a time are summed for a mean
_LEAST = 1e-12  # of the range: a chroma below is none
_SEXTANTS = (0.0, 2.0, -2.0)  # where red, green and blue lie on the hue circle of six parts


def per_image(xp, values):
    """A parameter `(batch,)` in a shape that broadcasts against images."""
    return xp.reshape(values, (-1, 1, 1, 1))


def check_rgb(layer, pixels):
    """Raise ValueError unless the pixels have three channels; `layer` is the name for the message."""
    if pixels.shape[-1] is None:
        raise ValueError(
            f"{layer}: images must have 3 channels (red, green, blue). Received: an unknown number of channels; call "
            "the tensor's `set_shape` first"
        )
    if pixels.shape[-1] != 3:
        raise ValueError(
            f"{layer}: images must have 3 channels (red, green, blue). Received: {pixels.shape[-1]} channels, images "
            f"of shape {tuple(pixels.shape)} (channels last)"
        )


# --- exact ---------------------------------------------------------------------------------------------------------


def mean(xp, pixels):
    """The mean of each channel of each image, `(batch, 1, 1, channels)`."""
    height = pixels.shape[1]
    if _kernels.is_on(xp, "torch"):
        return xp.mean(pixels, axis=(1, 2), keepdims=True)
    if height is None or height < 2 * _ROWS or _kernels.is_on(xp, "jax"):
        return xp.mean(xp.mean(pixels, axis=1, keepdims=True), axis=2, keepdims=True)
    # Sums of rows first, which TensorFlow's XLA vectorises: half the time on a CPU. JAX's then computes them twice.
    whole = height - height % _ROWS
    total = xp.sum(sum(pixels[:, i:whole:_ROWS] for i in range(_ROWS)), axis=1, keepdims=True)
    if whole < height:
        total = total + xp.sum(pixels[:, whole:], axis=1, keepdims=True)
    return xp.mean(total, axis=2, keepdims=True) * (1.0 / height)


def quick_mean(xp, pixels):
    """The mean of each channel of each image, `(batch, channels)`; of every fourth row and column of large images."""
    height, width = pixels.shape[1:3]
    if height is not None and width is not None and min(height, width) >= 64:
        pixels = pixels[:, ::4, ::4]
    return mean(xp, pixels)[:, 0, 0]


def contrast(xp, pixels, factor):
    """Stretch the values about the mean of their channel."""
    centre = mean(xp, pixels)
    stretched = pixels - centre
    stretched *= per_image(xp, factor)
    stretched += centre
    return stretched


def luminance(xp, pixels, were_bytes=False):
    """The luminance, `(batch, height, width, 1)`; for `were_bytes` see `_kernels.weigh_channels`."""
    return _kernels.weigh_channels(xp, pixels, LUMA, were_bytes)


def grayscale(xp, pixels, were_bytes=False):
    """The luminance in all three channels."""
    gray = luminance(xp, pixels, were_bytes)
    return gray.expand(pixels.shape) if _kernels.is_on(xp, "torch") else gray + xp.zeros_like(pixels)


def hue_and_saturation(xp, pixels, turns, saturation, value_range):
    """Turn the hue and multiply the saturation as HSV (Smith 1978) defines them; the value stays.

    One trip for both, and the same arithmetic for the three channels: no picture in HSV comes into being. The share of
    a channel follows from the distance of the pixel's hue to that channel's own on the hue circle.

    Args:
        xp: the namespace to compute in.
        pixels: three channels.
        turns: `(batch,)` in [-0.5, 0.5], in full turns, or None.
        saturation: `(batch,)` >= 0, or None; the product is clipped to 1.
        value_range: (low, high); `low` is black.
    """
    low, high = value_range
    red, green, blue = (pixels[..., i : i + 1] for i in range(3))
    greater, lesser, with_sign = _kernels.in_order(xp, green, blue)
    value = xp.maximum(red, greater)
    least = xp.minimum(red, lesser)
    chroma = value - least
    per_chroma = 1.0 / xp.maximum(chroma, (high - low) * _LEAST)
    new_chroma = chroma if saturation is None else xp.minimum(chroma * per_image(xp, saturation), value - low)
    if turns is None:  # the hue stays: each channel keeps its share
        return value - (value - pixels) * (per_chroma * new_chroma)
    # How far the hue is from red, in sixths of the circle, on green's side or on blue's. Less than a sixth away the
    # second term is 0.
    side, beyond = green - blue, 2.0 * (lesser - least) + (value - red)
    sextants = (side + with_sign(beyond)) * per_chroma
    sextants = sextants + per_image(xp, turns) * 6.0

    def channels(of):  # in sixths of the circle
        away = xp.abs(sextants - of)
        away = xp.minimum(away, xp.abs(away - 6.0))
        away -= 1.0
        away = _kernels.clip(xp, away, 0.0, 1.0)
        away *= new_chroma
        return value - away

    if _kernels.is_on(xp, "torch"):
        return _kernels.as_planes([channels(of) for of in _SEXTANTS])
    return channels(xp.convert_to_tensor(np.array(_SEXTANTS, "float32")))


# --- matrices ------------------------------------------------------------------------------------------------------


def apply(xp, pixels, matrix):
    """The pixels' colours mapped by the matrix of their image; not clipped."""
    if _kernels.has_planes(xp, pixels):
        return _kernels.mapped(pixels, matrix)
    # Three products and not a `matmul`, which with three columns is slow everywhere.
    columns = [matrix[:, None, None, :, i] for i in range(4)]
    return sum((pixels[..., i : i + 1] * columns[i] for i in range(3)), columns[3])


def chain(xp, *matrices):
    """One matrix for several that follow one another, the first one first."""
    result = matrices[0]
    for following in matrices[1:]:
        linear = following[:, :, :3]
        moved = xp.matmul(linear, result)
        result = moved + xp.concatenate([xp.zeros_like(linear), following[:, :, 3:]], axis=-1)
    return result


def shift_matrix(xp, shift):
    """Add a number, `(batch,)` or `(batch, 3)`."""
    shift = xp.reshape(shift, (-1, 1 if len(shift.shape) == 1 else 3))
    return _with_offset(xp, xp.convert_to_tensor(_IDENTITY), shift)


def contrast_matrix(xp, factor, centre):
    """Stretch about a colour `centre` `(batch, 3)`."""
    factor = xp.reshape(factor, (-1, 1))
    return _with_offset(xp, factor[..., None] * xp.convert_to_tensor(_IDENTITY), centre - centre * factor)


def saturation_matrix(xp, factor):
    """Move away from the luminance (`factor` above 1) or towards it: 0 is gray."""
    gray, colour = (xp.convert_to_tensor(each) for each in (_GRAY, _IDENTITY - _GRAY))
    return _with_offset(xp, gray + colour * xp.reshape(factor, (-1, 1, 1)), None)


def hue_matrix(xp, turns):
    """Turn the colours about the gray axis in YIQ; not what HSV calls hue, and linear."""
    angle = xp.reshape(turns, (-1, 1, 1)) * (2.0 * math.pi)
    still, cos, sin = (xp.convert_to_tensor(each) for each in _HUE)
    return _with_offset(xp, still + xp.cos(angle) * cos + xp.sin(angle) * sin, None)


def _hue_parts():
    back = np.linalg.inv(_YIQ)
    middle = (np.diag([1.0, 0.0, 0.0]), np.diag([0.0, 1.0, 1.0]), np.array([[0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]))
    return [(back @ each @ _YIQ).astype("float32")[None] for each in middle]


_HUE = _hue_parts()
_IDENTITY = np.eye(3, dtype="float32")[None]
_GRAY = np.tile(_YIQ[:1], (1, 3, 1)).astype("float32")


def _with_offset(xp, linear, offset):
    """`(batch, 3, 4)` from `(batch or 1, 3, 3)` and `(batch, 1 or 3)` or None."""
    if offset is None:
        return xp.concatenate([linear, xp.zeros_like(linear[:, :, :1])], axis=-1)
    column = offset[..., None] + xp.zeros_like(linear[:, :, :1])
    return xp.concatenate([linear + xp.zeros_like(column), column], axis=-1)
