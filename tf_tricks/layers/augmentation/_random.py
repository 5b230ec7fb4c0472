"""Random numbers that cost next to nothing: a hash of where they are used and of a key that changes with each call.

A counter-based generator (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3, SC '11) needs no state in
the loop, so XLA fuses it into the pass over the pixels; Keras's own normal numbers take 125 ms there, and seconds under
XLA. The mixing function is a 32-bit finalizer of two multiplications. In `int32`, which wraps on every backend: the
same key gives the same bits on TensorFlow, JAX and Torch.
"""

import functools
import math

import numpy as np

from tf_tricks._backend import torch
from tf_tricks.layers.augmentation import _kernels, _loops


def _signed(constant):
    return constant - 2**32 if constant >= 2**31 else constant


_SALTS = 16
_MOST_PLACES = 2**20  # that are kept from one call to the next
_FIRST, _SECOND = (_signed(constant) for constant in (0x7FEB352D, 0x846CA68B))

# Augmented assignments to what a function has made itself work in place on Torch, which keeps it in the cache.


def _shift_right(xp, x, count):
    """The bits of an int32 moved right, zeros from the left (`right_shift` repeats the sign)."""
    shifted = xp.right_shift(x, count)
    shifted &= (1 << (32 - count)) - 1
    return shifted


def scramble(xp, x):
    """A permutation of int32 under which one changed bit changes each other with probability one half."""
    return _end_of_scramble(xp, xp.bitwise_xor(x, _shift_right(xp, x, 16)))


def _end_of_scramble(xp, x):
    x *= _FIRST
    x ^= _shift_right(xp, x, 15)
    x *= _SECOND
    x ^= _shift_right(xp, x, 16)
    return x


def unit_interval(xp, bits):
    """The upper 24 bits of an int32 as float32 in [0, 1)."""
    return xp.cast(_shift_right(xp, bits, 8), "float32") * 2.0**-24


def fold(xp, key, number):
    """A key of its own for each int32 `number`; that for 0 is `key` itself."""
    if isinstance(number, int) and number == 0:
        return key
    return xp.bitwise_xor(key, scramble(xp, xp.convert_to_tensor(number, dtype="int32")))  # 0 is scrambled to 0


class Draws:
    """The random numbers of one call of a layer, for each image of a batch its own.

    Each request takes a stream of its own, in the order of the requests.

    Args:
        xp: the namespace to compute in.
        key: int32 tensor of shape (2,), another one for each call.
        batch: int or tensor, the number of images.
    """

    def __init__(self, xp, key, batch):
        self._xp, self._key, self._batch = xp, key, batch
        self._streams = 0
        self._salts, self._places = None, {}

    def child(self, number):
        """The numbers of a member of a composition, which do not depend on what the other members draw."""
        xp = self._xp
        key = scramble(xp, self._key + (number + 1) * 7919)
        return Draws(xp, key, self._batch)

    def _salt(self):
        """The number of the next stream; made for several at a time, which on Torch costs as much as one."""
        xp, place = self._xp, self._streams % _SALTS
        if place == 0:
            streams = range(self._streams + 1, self._streams + 1 + _SALTS)
            numbers = [_signed(stream * 0x9E3779B9 % 2**32) for stream in streams]
            first = scramble(xp, self._key[0] + xp.convert_to_tensor(numbers, dtype="int32"))
            self._salts = scramble(xp, xp.bitwise_xor(first, self._key[1]))
        self._streams += 1
        return self._salts[place]

    def bits(self, count=1):
        """int32 tensor `(batch, count)`."""
        xp = self._xp
        if count not in self._places:
            rows = xp.reshape(xp.arange(self._batch, dtype="int32"), (-1, 1))
            columns = xp.reshape(xp.arange(count, dtype="int32"), (1, -1))
            self._places[count] = scramble(xp, rows * count + columns)
        return scramble(xp, xp.bitwise_xor(self._places[count], self._salt()))

    def uniform(self, low=0.0, high=1.0, count=None):
        """float32 in [low, high): `(batch,)`, or `(batch, count)`."""
        unit = unit_interval(self._xp, self.bits(count or 1))
        values = low + (high - low) * unit
        return values if count is not None else values[:, 0]

    def chance(self, probability):
        """bool `(batch,)`, True with the given probability."""
        return self.uniform() < probability

    def integers(self, low, high):
        """int32 `(batch,)` in [low, high)."""
        xp = self._xp
        span = xp.cast(high - low, "float32")
        return low + xp.cast(xp.floor(self.uniform() * span), "int32")

    def symmetric_beta(self, alpha):
        """Beta(alpha, alpha), float32 `(batch,)`, for one `alpha` > 0 or one for each image.

        By Ulrich (1984) from one half on, where no draw is rejected, and by Jöhnk (1964) below, where 12 draws are all
        rejected once in 1e8: both compile everywhere, which a loop until acceptance does not.
        """
        xp = self._xp
        alpha = xp.maximum(xp.ones_like(self.uniform()) * alpha, 1e-30)  # or the quotients would be infinite
        first, second = (xp.log(1.0 - self.uniform(count=12)) / alpha[:, None] for _ in range(2))
        larger = xp.maximum(first, second)
        total = larger + xp.log(xp.exp(first - larger) + xp.exp(second - larger))  # a power may be below any float32
        shares = xp.exp(first - total)
        by_johnk = shares[:, 0]
        for k in range(11, -1, -1):
            by_johnk = xp.where(total[:, k] <= 0.0, shares[:, k], by_johnk)
        power = 2.0 / xp.maximum(2.0 * alpha - 1.0, 1e-6)
        radius = xp.sqrt(1.0 - xp.exp(power * xp.log(1.0 - self.uniform())))
        by_ulrich = 0.5 + 0.5 * xp.cos(2.0 * math.pi * self.uniform()) * radius
        return xp.where(alpha < 0.5, by_johnk, by_ulrich)

    def permutation(self):
        """int32 `(batch,)`, a random order of the images."""
        return self._xp.cast(self._xp.argsort(self.bits()[:, 0]), "int32")


def field(xp, salt, pixels, channels=None, window=None):
    """int32 bits for each value of images, from one number `(batch,)` for each image, within a pass.

    Args:
        xp: the namespace to compute in.
        salt: int32 `(batch,)`.
        pixels: the images, for their shape, and on Torch for how they lie in memory.
        channels: None, those of the images, or their number.
        window: on Torch (rows, columns), two slices, of one image: the bits of this part alone.
    """
    _, *shape = xp.shape(pixels)
    shape = shape if channels is None else (*shape[:2], channels)
    salt = xp.reshape(salt, (-1, 1, 1, 1))
    if _loops.runs_in_python(xp) and _loops.is_on_cpu(xp, pixels):
        places = _places if math.prod(shape) <= _MOST_PLACES else _places.__wrapped__
        x = torch.from_numpy(places(*shape, _kernels.has_planes(xp, pixels)))  # nothing is to be written into it
        x = x if window is None else x[:, window[0], window[1]]
        x = xp.bitwise_xor(x, salt ^ _shift_right(xp, salt, 16))
    else:
        x = xp.bitwise_xor(xp.reshape(xp.arange(math.prod(shape), dtype="int32") * _FIRST, (1, *shape)), salt)
        x ^= _shift_right(xp, x, 16)
    return _end_of_scramble(xp, x)


@functools.lru_cache(maxsize=4)
def _places(height, width, channels, in_planes):
    """What `field` hashes of the place of a value, as far as that goes without its salt; int32, for Torch."""
    x = np.arange(height * width * channels, dtype="int32").reshape(1, height, width, channels)
    x = (x.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1) if in_planes else x) * np.int32(_FIRST)
    return x ^ _shift_right(np, x, 16)


def normal_field(xp, salt, pixels, stddev=1.0, window=None):
    """Normal noise for each value of images, as far as 3.4 standard deviations: the sum of four bytes.

    `stddev` is a number, or a tensor that broadcasts against images; the rest is as in `field`.
    """
    bits = field(xp, salt, pixels, window=window)
    # Two bytes at a time, in the two halves of a number; the product adds its lower half to its upper one.
    halves = xp.right_shift(bits, 8)
    halves &= 0x00FF00FF
    bits &= 0x00FF00FF
    halves += bits
    halves *= 0x00010001
    total = xp.cast(xp.right_shift(halves, 16), "float32")
    # Four uniform integers 0..255 have mean 4 * 127.5 and variance 4 * (256**2 - 1) / 12.
    total -= 510.0
    total *= stddev * (1.0 / (65535.0 / 3.0) ** 0.5)
    return total
