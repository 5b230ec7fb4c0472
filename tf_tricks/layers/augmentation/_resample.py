"""One pass over the pixels that puts each output pixel together from the input, given a matrix for each image.

Four gathers of whole pixels from the flat batch: of what was tried (three shears, windows, rows then columns) the form
that XLA compiles best on a CPU. What lies outside costs arithmetic on the coordinates, never on the pixels.
"""

from tf_tricks.layers.augmentation import _kernels

FILL_MODES = ("constant", "nearest", "reflect", "wrap")
INTERPOLATIONS = ("bilinear", "nearest")
_BEHIND = 1e-6  # a point nearer to the horizon of a perspective lies behind the viewer


def resample(xp, images, matrix, size, *, interpolation, fill_mode, fill_value, projective=False):
    """The images seen through their matrices.

    Args:
        xp: the namespace to compute in.
        images: `(batch, height, width, channels)`, any dtype.
        matrix: float32 `(batch, 3, 3)`, see `_geometry`.
        size: (height, width) of the output.
        interpolation: "bilinear" or "nearest".
        fill_mode: what lies outside: "constant" (`fill_value`), "nearest" (the edge), "reflect" or "wrap", as in
            `scipy.ndimage` (there "grid-constant" and "grid-wrap").
        projective: bool, does the last row of a matrix differ from (0, 0, 1)?
    Returns:
        `(batch, *size, channels)`; float32, or the dtype of the images for "nearest".
    """
    batch, height, width, channels = xp.shape(images)
    x, y = _coordinates(xp, matrix, size, projective)
    if interpolation == "bilinear" and _kernels.has_sampler(xp, fill_mode):
        return _kernels.sample(images, x, y, fill_mode, fill_value)

    flat = xp.reshape(images, (-1, channels))
    first = xp.reshape(xp.arange(batch, dtype="int32"), (-1, 1, 1)) * (height * width)
    if interpolation == "nearest":
        x, y = xp.floor(x + 0.5), xp.floor(y + 0.5)
        column, row = (_whole(xp, v, length, fill_mode) for v, length in ((x, width), (y, height)))
        found = _kernels.rows(xp, flat, first + row * width + column)
        if fill_mode != "constant":
            return found
        outside = xp.logical_or(_outside(xp, x, width), _outside(xp, y, height))
        return xp.where(outside[..., None], xp.cast(fill_value, found.dtype), found)

    left, right, left_share, right_share = _taps(xp, x, width, fill_mode)
    top, bottom, top_share, bottom_share = _taps(xp, y, height, fill_mode)

    def line(row):
        index = first + row * width
        pixels = (xp.cast(_kernels.rows(xp, flat, index + column), "float32") for column in (left, right))
        return sum(pixel * share[..., None] for pixel, share in zip(pixels, (left_share, right_share), strict=True))

    seen = line(top) * top_share[..., None] + line(bottom) * bottom_share[..., None]
    if fill_mode == "constant" and fill_value != 0:
        seen = seen + (fill_value * (1.0 - (left_share + right_share) * (top_share + bottom_share)))[..., None]
    return seen


def _coordinates(xp, matrix, size, projective):
    """The point of the input, `(x, y)`, each `(batch, *size)`, that each pixel of the output shows."""
    rows = xp.cast(xp.reshape(xp.arange(size[0]), (1, -1, 1)), "float32")
    columns = xp.cast(xp.reshape(xp.arange(size[1]), (1, 1, -1)), "float32")
    entry = [[xp.reshape(matrix[:, r, k], (-1, 1, 1)) for k in range(3)] for r in range(3)]
    x, y = (entry[r][0] * columns + (entry[r][1] * rows + entry[r][2]) for r in range(2))
    if projective:
        scale = entry[2][0] * columns + (entry[2][1] * rows + entry[2][2])
        share = 1.0 / xp.maximum(scale, _BEHIND)
        x, y = (xp.where(scale > _BEHIND, v * share, -1e6 * xp.ones_like(v)) for v in (x, y))
    return x, y


def _taps(xp, v, length, fill_mode):
    """The two pixels, int32, beside coordinates along an axis, and their shares: `(first, second, share, share)`."""
    end = _number(xp, length)
    if fill_mode == "wrap":
        v = v - end * xp.floor(v / end)
        first = _kernels.clip(xp, xp.floor(v), 0.0, end - 1.0)  # rounding may give `end` itself
        second = xp.where(first < end - 1.0, first + 1.0, xp.zeros_like(first))
        share = v - first
        return xp.cast(first, "int32"), xp.cast(second, "int32"), 1.0 - share, share
    if fill_mode == "reflect":
        v = _reflect(xp, v, end)
    if fill_mode != "constant":
        v = _kernels.clip(xp, v, 0.0, end - 1.0)
    # With an axis of one pixel the second is the first, with no share.
    first = xp.maximum(xp.minimum(xp.floor(v), end - 2.0), 0.0)
    second_step = min(length - 1, 1) if isinstance(length, int) else xp.minimum(length - 1, 1)
    index = xp.cast(first, "int32")
    if fill_mode == "constant":  # the shares of a tent about each pixel: nothing is left of them outside
        shares = (xp.maximum(1.0 - xp.abs(v - first), 0.0), xp.maximum(1.0 - xp.abs(v - first - 1.0), 0.0))
        return index, index + second_step, shares[0], shares[1] * _number(xp, second_step)
    return index, index + second_step, 1.0 - (v - first), v - first


def _reflect(xp, v, end):
    """Coordinates folded into [-0.5, end - 0.5]: d c b a | a b c d | d c b a; inside they stay, bit by bit."""
    v = v - 2.0 * end * xp.floor((v + 0.5) * (1.0 / (2.0 * end)))
    return xp.minimum(v, 2.0 * end - 1.0 - v)


def _whole(xp, v, length, fill_mode):
    """Whole coordinates, float32, as int32 within [0, length)."""
    end = _number(xp, length)
    if fill_mode == "wrap":
        v = v - end * xp.floor(v / end)
    elif fill_mode == "reflect":
        v = _reflect(xp, v, end)
    return xp.cast(_kernels.clip(xp, v, 0.0, end - 1.0), "int32")


def _outside(xp, v, length):
    return xp.logical_or(v < 0.0, v > _number(xp, length) - 1.0)


def _number(xp, length):
    return float(length) if isinstance(length, int) else xp.cast(length, "float32")
