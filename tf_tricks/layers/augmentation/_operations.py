"""The operations of the policies."""

from tf_tricks.layers.augmentation import _colour, _geometry, _tables
from tf_tricks.layers.augmentation.pixel_augmentation import per_image


def _shear(xp, x, y, size):
    return _geometry.about(xp, 1.0 + 0.0 * x, x, y, 1.0 + 0.0 * y, _geometry.centre_of(size))


def _translation(xp, x, y, size):
    return _geometry.affine(xp, 1.0, 0.0, -x, 0.0, 1.0, -y)


def _rotation(xp, angle, _, size):
    cos, sin = xp.cos(angle), xp.sin(angle)
    return _geometry.about(xp, cos, -sin, sin, cos, _geometry.centre_of(size))


def _brighten(xp, pixels, amount, value_range):
    """Add a share of the range."""
    return pixels + per_image(xp, amount) * (value_range[1] - value_range[0])


def _multiply(xp, pixels, amount, value_range):
    low = value_range[0]
    return (pixels - low) * per_image(xp, amount) + low


def _gray(xp, pixels):
    return pixels if pixels.shape[-1] == 1 else _colour.grayscale(xp, pixels)


def _saturate(xp, pixels, amount, value_range):
    """Between the luminance (0), the image (1) and beyond."""
    gray = _gray(xp, pixels)
    return gray + (pixels - gray) * per_image(xp, amount)


def _contrast(xp, pixels, amount, value_range):
    """Stretch about the mean of each channel."""
    return _colour.contrast(xp, pixels, amount)


def _gray_contrast(xp, pixels, amount, value_range):
    """Stretch about the mean of the luminance."""
    centre = _colour.mean(xp, _gray(xp, pixels)[..., :1])
    return (pixels - centre) * per_image(xp, amount) + centre


# `(xp, first, second, size) -> matrix`: slopes, pixels, radians.
GEOMETRIC = {"shear": _shear, "translation": _translation, "rotation": _rotation}
GEOMETRIC |= {f"{name}_{axis}": GEOMETRIC[name] for name in ("shear", "translation") for axis in "xy"}

# `(xp, pixels, amount, value_range) -> pixels`.
VALUES = {
    "brightness": _brighten,
    "multiplication": _multiply,
    "saturation": _saturate,
    "contrast": _contrast,
    "gray_contrast": _gray_contrast,
    "sharpness": _tables.sharpness,
    "posterization": _tables.posterise,
    "solarization": _tables.solarise,
    "auto_contrast": _tables.auto_contrast,
    "equalization": _tables.equalise,
}
