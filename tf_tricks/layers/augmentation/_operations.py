"""The operations of the policies, and the loop over images in which each runs its own."""

from tf_tricks._backend import BACKEND, jax
from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation import _colour, _geometry, _tables
from tf_tricks.layers.augmentation._namespaces import OPS
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


def one_by_one(xp, function, images, parameters, dtype):
    """`function(xp, image, parameters)` for one image after the other, each as a batch of one.

    `parameters` is a nest of tensors `(batch, ...)`, `dtype` that of the result. For TensorFlow and JAX.
    """
    if images.shape[0] == 0:  # XLA has no loop without a turn
        return xp.cast(images, dtype)
    if images.shape[0] == 1:
        return function(xp, images, parameters)

    def body(given):
        image, *mine = _nest(lambda value: value[None], given)
        return function(xp, image, *mine)[0]

    if xp is OPS and BACKEND == "jax":
        return jax.lax.map(body, (images, parameters))
    tf = tensorflow()

    @tf.autograph.experimental.do_not_convert
    def loop(images):
        return tf.map_fn(body, (images, parameters), fn_output_signature=tf.as_dtype(dtype))

    # The gradient runs the loop once more: what a loop keeps for its gradient cannot leave code compiled by XLA.
    @tf.custom_gradient
    def run(images):
        def gradient(upstream):
            with tf.GradientTape() as tape:
                tape.watch(images)
                result = loop(images)
            return tape.gradient(result, images, upstream)

        return loop(images), gradient

    return run(images)


def repeat(xp, times, function, value):
    """`value = function(number, value)` for the numbers 0 to `times - 1`; for TensorFlow and JAX."""
    if times == 1:
        return function(0, value)
    if xp is OPS and BACKEND == "jax":
        return jax.lax.fori_loop(0, times, function, value)
    tf = tensorflow()
    return tf.while_loop(
        lambda number, value: number < times,
        lambda number, given: (number + 1, tf.ensure_shape(function(number, given), value.shape)),
        (tf.constant(0), value),
        shape_invariants=(tf.TensorShape([]), value.shape),
        maximum_iterations=times,
    )[1]


def _nest(function, nest):
    if isinstance(nest, dict):
        return {key: _nest(function, value) for key, value in nest.items()}
    if isinstance(nest, list | tuple):
        return [_nest(function, value) for value in nest]
    return function(nest)
