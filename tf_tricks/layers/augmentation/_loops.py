"""Loops over the images of a batch, which XLA compiles, and which Python runs on Torch.

On a CPU an image goes through several steps faster alone: what a step leaves for the next one stays in the cache, in
memory that is used again for the next image. A batch's worth of it is fresh memory, of which each page must be had from
the system first: JAX pays more for that than for the arithmetic of most layers, and Torch for each operation.
"""

import contextlib
import math
import threading

from tf_tricks._backend import BACKEND, jax, torch
from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation._compiled import apart, is_compiling
from tf_tricks.layers.augmentation._namespaces import OPS

LEAST_VALUES = 2**15  # of a turn of the loop: a turn of fewer costs more than its arithmetic
MOST_VALUES = 3 * 2**15  # a turn takes several small images
CACHED_VALUES = 2**20
_WITHOUT_INDEX_COPY = ("torch.uint16", "torch.uint32", "torch.uint64")
_here = threading.local()


def images_in_a_turn(xp, images):
    """How many of the images `(batch, ...)` one turn of a loop takes: 0 for no loop."""
    shape = tuple(images.shape)
    if None in shape[1:] or not all(isinstance(each, int) for each in shape[1:]) or not is_on_cpu(xp, images):
        return 0
    values, batch = math.prod(shape[1:]), shape[0]
    if values == 0:
        return 0
    if runs_in_python(xp) and is_cached(xp, images):
        return 0
    most = max(MOST_VALUES // values, 1)
    if isinstance(batch, int) and batch > 0:
        # In Python the last turn may take fewer; XLA's turns all take as many.
        most = next(each for each in range(min(most, batch), 0, -1) if batch % each == 0 or runs_in_python(xp))
    else:
        most = 1 if batch is None else 0
    return most if most * values >= LEAST_VALUES else 0


def is_cached(xp, images):
    """Are all images computed faster at once than in turns, since they fit into the cache together?

    In the loops of TensorFlow's XLA values are computed one at a time, not so in JAX's; a turn in Python takes longer.
    """
    shape = tuple(images.shape)
    return (xp is not OPS or BACKEND != "jax") and None not in shape and math.prod(shape) <= CACHED_VALUES


def runs_in_python(xp):
    """Does a loop run as it is, with nothing to compile it?"""
    return xp is OPS and BACKEND == "torch"


def is_on_cpu(xp, images):
    """Are these computed on a CPU, and on Torch as they come?"""
    if runs_in_python(xp):
        return images.device.type == "cpu" and not torch.compiler.is_compiling()  # which would unroll the loop
    if xp is OPS and BACKEND == "jax":
        return jax.default_backend() == "cpu"
    # `tf.data` computes on the CPU; which layers are in it, only another backend's can tell.
    return xp is not OPS or not tensorflow().config.get_visible_devices("GPU")


def in_turns(xp, function, images, parameters, dtype):
    """`function(xp, images, parameters)`, for some images after the others, as many as `images_in_a_turn` says.

    All at once where nothing is being compiled, but on Torch: there a loop only costs. In the function `settled` keeps
    steps apart. `parameters` is a list of nests of tensors `(batch, ...)`, the last one of numbers that change from
    call to call, int32 `(batch,)`. `dtype` is that of the result.
    """
    count = images_in_a_turn(xp, images)
    if count == 0 or not (is_compiling() or runs_in_python(xp)):
        return function(xp, images, parameters)
    if runs_in_python(xp):
        return _one_after_the_other(xp, function, images, parameters, count)

    def turn(xp, images, parameters):
        with _settling(parameters[-1][0]):
            return function(xp, images, parameters)

    batch = images.shape[0]
    if count == batch:
        return turn(xp, images, parameters)
    if count == 1:
        return one_by_one(xp, turn, images, parameters, dtype)

    def split(value):
        return xp.reshape(value, (batch // count, count, *value.shape[1:]))

    def several(xp, images, parameters):
        return turn(xp, images[0], on_leaves(lambda value: value[0], parameters))[None]

    result = one_by_one(xp, several, split(images), on_leaves(split, parameters), dtype)
    return xp.reshape(result, (batch, *result.shape[2:]))


def _one_after_the_other(xp, function, images, parameters, count):
    def turn(begin):
        here = slice(begin, begin + count)
        return function(xp, images[here], on_leaves(lambda value: value[here], parameters))

    with _one_at_a_time(count == 1):
        return _put_together(turn, images.shape[0], count)


def _put_together(turn, batch, count):
    result = turn(0)
    if torch.is_grad_enabled() and result.requires_grad:
        return torch.cat([result, *map(turn, range(count, batch, count))])
    whole = result.new_empty((batch, *result.shape[1:]))
    whole[:count] = result
    for begin in range(count, batch, count):
        whole[begin : begin + count] = turn(begin)
    return whole


@contextlib.contextmanager
def _one_at_a_time(value):
    before, _here.has_one = has_one_image(), value
    try:
        yield
    finally:
        _here.has_one = before


def has_one_image():
    """Is this a turn that Python runs for one image, on a CPU? Then a condition may be a branch."""
    return getattr(_here, "has_one", False)


def where(xp, condition, change, images, parameters=()):
    """`change(images, parameters)` for the images for which `condition` `(batch,)` holds, the others as they are.

    On Torch, on a CPU, nothing is computed for the others. `parameters` is a nest of tensors `(batch, ...)`.
    """
    if not (runs_in_python(xp) and is_on_cpu(xp, images)) or str(images.dtype) in _WITHOUT_INDEX_COPY:
        return xp.where(xp.reshape(condition, (-1, 1, 1, 1)), change(images, parameters), images)
    alone = has_one_image()
    try:
        chosen = bool(condition) if alone else torch.nonzero(condition)[:, 0]
    except RuntimeError:  # in a transformation of `torch.func` no condition is known
        return torch.where(condition.reshape(-1, 1, 1, 1), change(images, parameters), images)
    if alone:
        return change(images, parameters) if chosen else images
    return for_chosen(chosen, change, images, parameters)


def for_chosen(chosen, change, images, parameters):
    """`where` on Torch, for the images with the numbers `chosen`."""
    if len(chosen) == len(images):
        return change(images, parameters)
    if len(chosen) == 0:
        return images
    # With the channels first: Torch takes and puts whole images as they lie in memory.
    axes, back = ((0, 3, 1, 2), (0, 2, 3, 1)) if images.stride(-1) != 1 else ((0, 1, 2, 3),) * 2
    lying = images.permute(axes)
    changed = change(lying.index_select(0, chosen).permute(back), on_leaves(lambda value: value[chosen], parameters))
    return lying.index_copy(0, chosen, changed.permute(axes)).permute(back)


@contextlib.contextmanager
def _settling(number):
    before, _here.number = getattr(_here, "number", None), number
    try:
        yield
    finally:
        _here.number = before


def settled(xp, compute):
    """`compute()`, in a turn of `in_turns` written to memory: for what reads its pixels more than once.

    XLA would compute them once for each time that they are read, and not several at a time.
    """
    number = getattr(_here, "number", None)
    return compute() if number is None else apart(xp, compute, number)


def one_by_one(xp, function, images, parameters, dtype):
    """`function(xp, image, parameters)` for one image after the other, each as a batch of one.

    `parameters` is a nest of tensors `(batch, ...)`, `dtype` that of the result. For TensorFlow and JAX.
    """
    if images.shape[0] == 0:  # XLA has no loop without a turn
        return xp.cast(images, dtype)
    if images.shape[0] == 1:
        return function(xp, images, parameters)

    def body(given):
        image, *mine = on_leaves(lambda value: value[None], given)
        return function(xp, image, *mine)[0]

    if xp is OPS and BACKEND == "jax":
        return jax.lax.map(body, (images, parameters))
    tf = tensorflow()

    @tf.autograph.experimental.do_not_convert
    def loop(images):
        if images.shape[0] is not None:
            return tf.map_fn(body, (images, parameters), fn_output_signature=tf.as_dtype(dtype))
        # Of an unknown number there may be none: XLA then fails on the turn that never comes, but not on one too many.
        count = tf.shape(images)[0]
        more = 1 - tf.minimum(count, 1)
        given = on_leaves(
            lambda value: tf.pad(value, [[0, more]] + [[0, 0]] * (len(value.shape) - 1)), (images, parameters)
        )
        return tf.map_fn(body, given, fn_output_signature=tf.as_dtype(dtype))[:count]

    return loop(images)


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


def on_leaves(function, nest):
    """`function` on each leaf of nested dicts and lists."""
    if isinstance(nest, dict):
        return {key: on_leaves(function, value) for key, value in nest.items()}
    if isinstance(nest, list | tuple):
        return [on_leaves(function, value) for value in nest]
    return function(nest)
