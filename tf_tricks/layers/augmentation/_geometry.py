"""3x3 matrices for each image of a batch: where an output pixel comes from. A chain of them is one matrix.

Coordinates are `(x, y, 1)` in pixels, the centre of the first pixel at `(0, 0)`. A matrix maps a point of the output to
the point of the input that it shows, as in `keras.ops.image.affine_transform` and `scipy.ndimage`.
"""


def matrices(xp, rows):
    """Tensor `(batch, 3, 3)` from three rows of three entries, each a tensor `(batch,)` or a number."""
    like = next(entry for row in rows for entry in row if hasattr(entry, "shape"))
    entries = [xp.ones_like(like) * entry for row in rows for entry in row]
    return xp.reshape(xp.stack(entries, axis=-1), (-1, 3, 3))


def affine(xp, a, b, c, d, e, f):
    """`x_in = a x + b y + c`, `y_in = d x + e y + f`."""
    return matrices(xp, ((a, b, c), (d, e, f), (0.0, 0.0, 1.0)))


def about(xp, a, b, d, e, centre):
    """The linear map `((a, b), (d, e))` about a point `(x, y)` that stays where it is."""
    x, y = centre
    return affine(xp, a, b, x - a * x - b * y, d, e, y - d * x - e * y)


def centre_of(size):
    """The middle of an image of `(height, width)`, as `(x, y)`."""
    height, width = size
    return (width - 1) / 2, (height - 1) / 2


def choose(xp, condition, matrix, otherwise):
    """`matrix` for the images for which `condition` `(batch,)` holds, else `otherwise`."""
    return xp.where(condition[:, None, None], matrix, otherwise)


def identity(xp, like):
    """The matrix that changes nothing, for as many images as `like` has entries."""
    return affine(xp, xp.ones_like(like), 0.0, 0.0, 0.0, 1.0, 0.0)


def inverse(xp, matrix):
    """The inverse of each matrix, by the adjugate: XLA has no fast `inv`."""
    (a, b, c), (d, e, f), (g, h, i) = ([matrix[:, r, k] for k in range(3)] for r in range(3))
    adjugate = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    determinant = a * adjugate[0][0] + b * adjugate[1][0] + c * adjugate[2][0]
    # A matrix that folds the image into a line has none; it still gets numbers, not NaN.
    determinant = xp.where(xp.abs(determinant) < 1e-9, 1e-9 * xp.ones_like(determinant), determinant)
    return matrices(xp, adjugate) / determinant[:, None, None]


def mirrors(xp, matrix):
    """bool `(batch,)`: does an image come out as in a mirror? Two flips, of one axis each, are a rotation."""
    (a, b, c), (d, e, f), (g, h, i) = ([matrix[:, r, k] for k in range(3)] for r in range(3))
    return a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g) < 0.0


def window(xp, left, top, width, height, size):
    """The window of an image from `left` to `left + width` and from `top` to `top + height`, resized to `size`.

    Each of the four a tensor `(batch,)` in pixels, `size` is (height, width). A window of that size already is shown
    as it is, bit by bit.
    """
    x, y = width / float(size[1]), height / float(size[0])
    return affine(xp, x, 0.0, left + (0.5 * x - 0.5), 0.0, y, top + (0.5 * y - 0.5))


def transform(xp, matrix, x, y):
    """Points `(batch, ...)` mapped by their image's matrix; returns `(x, y)`, far away what lies behind the viewer."""
    shape = [-1] + [1] * (len(x.shape) - 1)
    entry = [[xp.reshape(matrix[:, r, k], shape) for k in range(3)] for r in range(3)]
    new_x, new_y, scale = (entry[r][0] * x + entry[r][1] * y + entry[r][2] for r in range(3))
    scale = xp.maximum(scale, 1e-6)
    return new_x / scale, new_y / scale
