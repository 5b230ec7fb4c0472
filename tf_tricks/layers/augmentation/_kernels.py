"""Reading pixels, for which each backend has a fast form of its own."""

from tf_tricks._backend import BACKEND, jax, torch
from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation import _loops
from tf_tricks.layers.augmentation._namespaces import OPS

TORCH_PADDING = {"constant": "zeros", "nearest": "border", "reflect": "reflection"}


def rows(xp, table, index):
    """The rows of a table `(n, channels)` at int32 indices within [0, n): `(*index.shape, channels)`.

    `keras.ops.take` also serves negative indices and such as lie outside, which costs as much again.
    """
    if is_on(xp, "jax"):
        return table.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
    if is_on(xp, "torch"):
        return torch.index_select(table, 0, index.reshape(-1)).reshape(*index.shape, table.shape[1])
    return tensorflow().gather(table, index)


def windows(xp, images, top, left, size):
    """From each image the window of `size` (height, width) at its own int32 `top` and `left` `(batch,)`."""
    if _loops.has_one_image():
        return images.narrow(1, int(top), size[0]).narrow(2, int(left), size[1])
    if is_on(xp, "jax"):
        shape = (*size, images.shape[3])
        return jax.vmap(lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), shape))(images, top, left)
    batch, height, width, channels = xp.shape(images)
    first, y, x, row, column = (
        xp.reshape(xp.cast(each, "int32"), shape)
        for each, shape in (
            (xp.arange(batch), (-1, 1, 1)),
            (top, (-1, 1, 1)),
            (left, (-1, 1, 1)),
            (xp.arange(size[0]), (1, -1, 1)),
            (xp.arange(size[1]), (1, 1, -1)),
        )
    )
    index = ((first * height + y + row) * width + x) + column
    return rows(xp, xp.reshape(images, (-1, channels)), index)


def clip(xp, values, low, high):
    """`xp.clip` for numbers `low` and `high`, of which Keras makes tensors: on Torch three times the time."""
    return values.clamp(low, high) if is_on(xp, "torch") else xp.clip(values, low, high)


def planes(xp, images):
    """The images as float32; on Torch each channel in one piece, with the axes in the order that they have.

    What the channels of a pixel have in common then meets them in long loops: of three values each they take six times
    as long.
    """
    if not (is_on(xp, "torch") and _loops.is_on_cpu(xp, images)):
        return xp.cast(images, "float32")
    return images.permute(0, 3, 1, 2).contiguous().to(torch.float32).permute(0, 2, 3, 1)


def as_planes(channels):
    """Torch's images, in planes, of a list of channels `(batch, height, width, 1)`."""
    return torch.stack([each[..., 0] for each in channels], dim=1).permute(0, 2, 3, 1)


def has_planes(xp, pixels):
    """On Torch: are the channels of a pixel no neighbours in memory?"""
    return is_on(xp, "torch") and pixels.stride(-1) != 1


def handed_out(xp, images, given):
    """The result of a layer that was given `given`; on Torch contiguous, as Keras's are, and no one else's."""
    if not is_on(xp, "torch"):
        return images
    images = images.contiguous()
    try:
        is_given = images.data_ptr() == given.data_ptr()
    except RuntimeError:  # transformed or traced by Torch, nothing lies anywhere yet
        return images
    return images.clone() if is_given else images


def to_whole_numbers(xp, values, dtype, low, high):
    """Floats rounded to a dtype of integers, which holds `low` to `high`."""
    if is_on(xp, "torch"):
        if values.shape[-1] > 1 and values.stride(-1) == 0:  # gray ones, see `_colour.grayscale`
            return to_whole_numbers(xp, values[..., :1], dtype, low, high).expand(values.shape)
        rounded = torch.round(values).clamp_(low, high)
        # By way of int16 it takes a quarter of the time.
        return (rounded.to(torch.int16) if dtype == "uint8" else rounded).to(getattr(torch, dtype))
    return xp.cast(xp.clip(xp.round(values), low, high), dtype)


def weigh_channels(xp, pixels, weights, were_bytes=False):
    """The sum of the channels, each times its weight: `(..., channels)` -> `(..., 1)`.

    `were_bytes`: the pixels were cast just before. TensorFlow's XLA would do that anew for each channel of what comes
    out, if it did not see a reduction; of floats, and on JAX of bytes, the plain sum is the faster one.
    """
    if is_on(xp, "torch") and not has_planes(xp, pixels):
        with torch.autocast(pixels.device.type, enabled=False):
            return torch.matmul(pixels, pixels.new_tensor(weights))[..., None]
    if were_bytes and not is_on(xp, "jax"):
        return xp.sum(pixels * xp.convert_to_tensor(weights, dtype="float32"), axis=-1, keepdims=True)
    return sum(pixels[..., i : i + 1] * weight for i, weight in enumerate(weights))


def between(xp, start, end, share):
    """`start` where the share is 0, `end` where it is 1; all three tensors."""
    return torch.lerp(start, end, share) if is_on(xp, "torch") else start + (end - start) * share


def in_order(xp, first, second):
    """The greater and the lesser of two tensors, and a function that gives numbers >= 0 the sign of their difference.

    Where the two are equal, the gradient of all three takes the first one for the greater.
    """
    if is_on(xp, "torch") and not first.requires_grad:  # the same numbers in a third of the time
        return torch.maximum(first, second), torch.minimum(first, second), lambda x: torch.copysign(x, first - second)
    leads = first >= second
    return xp.where(leads, first, second), xp.where(leads, second, first), lambda x: xp.where(leads, x, -x)


def mapped(pixels, matrix):
    """Torch's product of a matrix `(batch, 3, 4)` with the colours of pixels that lie in planes."""
    flat = pixels.permute(0, 3, 1, 2).flatten(2)
    with torch.autocast(pixels.device.type, enabled=False):
        found = torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], flat)
    return found.unflatten(2, pixels.shape[1:3]).permute(0, 2, 3, 1)


def in_all_channels(xp, values, channels):
    """`(..., 1)` as what broadcasts against `(..., channels)`: on Torch repeated, or it would go value by value."""
    return torch.cat([values] * channels, dim=-1) if is_on(xp, "torch") and channels > 1 else values


def has_sampler(xp, fill_mode):
    """Has the backend a kernel that interpolates? Torch has; it runs its operations one by one, without XLA."""
    return is_on(xp, "torch") and fill_mode in TORCH_PADDING


def sample(images, x, y, fill_mode, fill_value):
    """Torch's bilinear sampling of `images` at pixel coordinates `(batch, h, w)`: float32."""
    height, width = images.shape[1:3]
    # The copy pays: pixels that are fetched here and there wait for the memory unless they are in the cache.
    images = planes(OPS, images).permute(0, 3, 1, 2)
    if shifted := fill_mode == "constant" and fill_value != 0:
        images = images - fill_value  # Torch fills with zeros alone
    # Edges at -1 and 1, so that "reflection" reflects about the edge of the last pixel, not about its centre.
    # One after the other in memory: pairs take ten times as long to put together.
    grid = torch.stack([(2.0 * x + 1.0) / width - 1.0, (2.0 * y + 1.0) / height - 1.0], dim=1).permute(0, 2, 3, 1)
    padding = TORCH_PADDING[fill_mode]
    found = torch.nn.functional.grid_sample(images, grid, padding_mode=padding, align_corners=False)
    return (found + fill_value if shifted else found).permute(0, 2, 3, 1)


def is_on(xp, backend):
    """Is `xp` the functions of this backend?"""
    return xp is OPS and BACKEND == backend
