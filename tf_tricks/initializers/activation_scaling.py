"""A variance-scaling initializer that computes the gain of the activation."""

import math

import keras

from tf_tricks._checks import check_one_of
from tf_tricks.initializers._random import as_seed, orthogonal, working_dtype
from tf_tricks.initializers.activation_gain import activation_gain
from tf_tricks.initializers.delta_orthogonal import at_centre

MODES = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = ("truncated_normal", "normal", "uniform", "orthogonal", "delta_orthogonal")
KINDS = ("auto", "attention", "depthwise", "embedding", "transposed")
MIRRORED = (None, "outputs", "inputs", "both")
_TRUNCATED_STDDEV = 0.87962566103423978  # of a standard normal distribution that is cut off at two


def fans(shape, kind="auto", input_axes=None, output_axes=None):
    """How many inputs an output sees, and how many outputs an input feeds: `(fan_in, fan_out)`.

    Args:
        shape: tuple of ints, of the kernel.
        kind: "auto" (dense `(in, out)`, convolution `(*window, in, out)`), "attention" `(in, heads, size)` or
            `(heads, size, out)` with heads * size = in = out, "depthwise" `(*window, in, multiplier)`, "embedding"
            `(vocabulary, out)` or "transposed" `(*window, out, in)`.
        input_axes, output_axes: None or sequences of ints, the axes of an einsum kernel that are summed over and that
            are kept; they win over `kind`.
    """
    if kind == "attention" and input_axes is None:
        input_axes, output_axes = attention_axes(shape)
    if input_axes is not None:
        return math.prod(shape[i] for i in input_axes), math.prod(shape[i] for i in output_axes)
    if kind == "embedding":  # looking up is multiplying by a row with a single 1
        return 1, shape[-1]
    window = math.prod(shape[:-2])
    if kind == "depthwise":
        return window, window * shape[-1]
    if kind == "transposed":
        return window * shape[-1], window * shape[-2]
    return (window * shape[-2], window * shape[-1]) if len(shape) > 1 else (math.prod(shape),) * 2


def attention_axes(shape):
    """The summed and the kept axes of a projection into heads or out of them, which its shape alone has to tell."""
    if len(shape) == 3 and shape[0] == shape[1] * shape[2]:
        return [0], [1, 2]
    if len(shape) == 3 and shape[2] == shape[0] * shape[1]:
        return [0, 1], [2]
    raise ValueError(
        'ActivationScaling: `kind="attention"` cannot tell inputs from outputs by a shape that is neither (in, heads, '
        f"in / heads) nor (heads, out / heads, out); give `input_axes` and `output_axes`. Received: {shape}"
    )


@keras.saving.register_keras_serializable(package="tf_tricks")
class ActivationScaling(keras.initializers.VarianceScaling):
    """Random kernels that keep the second moment of the pre-activations through a deep network.

    The entries have the variance gain^2 / fan, and the gain is computed from the activation: 1 / sqrt(E[f(z)^2]) for z
    ~ N(0, 1), so that pre-activations of second moment 1 come out of the next layer with second moment 1. Closed form
    for linear (1), relu (sqrt 2), leaky relu and selu (1), else by quadrature, to 1e-6.

    How long it lasts in *one* network depends on the activation, because no layer is infinitely wide. With tanh, selu
    and elu a deviation shrinks from layer to layer. With relu and leaky relu it neither shrinks nor grows: the moment
    wanders, by about sqrt(5 depth / width) for independent entries. With gelu, silu and mish it grows by 7 to 17 % in
    each layer, so that no gain whatsoever holds it for long. `mirrored="both"` holds all of them, in dense layers with
    `distribution="orthogonal"`, in convolutions with "delta_orthogonal".

    Keeping the forward signal is not keeping the gradient: with tanh and this gain its variance grows by 18 % a layer.

    Args:
        activation: the activation that the *inputs* of the kernel come from (in a plain network also the one that
            follows; for the first layer "linear"): name, `keras.activations` function, layer or any elementwise
            callable. One that Keras does not know needs `keras.saving.register_keras_serializable` to be saved, and in
            attention and `EinsumDense`, which copy their initializers by way of the config.
        mode: "fan_in" keeps the signal on its way forward, "fan_out" that of the gradient on its way back (where the
            activation has the slope of a relu), "fan_avg" is between the two.
        distribution: "truncated_normal", "normal", "uniform", "orthogonal" or "delta_orthogonal". "orthogonal" has
            orthonormal rows or columns times a number that gives the same variance; a convolution is one matrix
            `(window * in, out)`, depthwise one per input channel, an einsum kernel one of its summed and its kept axes.
            That keeps no norm in a convolution, whose windows overlap, and padding with zeros takes from it at the
            border: "delta_orthogonal" has the matrix at the centre of the window and zeros around (convolutions only).
        kind: "auto": dense or convolution by the rank of the kernel, and attention and other `EinsumDense` layers by
            the axes that the layer hands over by itself (Keras 3.15 does). "attention": the same with a Keras that
            hands over nothing, where heads * size of a head is the number of inputs. "depthwise": a depthwise kernel,
            whose outputs see one channel each. "embedding": a table whose rows are looked up (fan_in is 1).
            "transposed": the kernel `(*window, out, in)` of a transposed convolution, which "auto" takes for one of
            `out` inputs. With strides each output sees only a part of the window, which the kernel does not tell: the
            second moment is smaller by the product of the strides then.
        mirrored: None, or "outputs", "both" or "inputs" for the first layer, those in the middle and the last one of a
            plain network: its units are pairs with opposite weights, so that z and -z stand side by side (the second
            half of the channels mirrors the first). relu(z) - relu(-z) is z, and the same holds for gelu and
            silu: the network begins as a linear one and learns to bend from there. Numbers of channels must be even.
            Dense layers and convolutions without groups only.
        input_axes, output_axes: None or sequences of ints: the axes of an einsum kernel that are summed over and that
            are kept; they win over `kind`. As in `keras.initializers.VarianceScaling`.
        seed: None, int or `keras.random.SeedGenerator`. An int, and None too, gives the same values at each call.
    Raises:
        TypeError, ValueError: an argument is out of range, or the activation does not act on each entry by itself.
    Reference:
        He et al. (2015), arXiv:1502.01852, section 2.2 (relu); Poole et al. (2016), arXiv:1606.05340, section 2 (the
        second moment over depth); Balduzzi et al. (2017), arXiv:1702.08591, section 4 (mirrored: "looks linear").
    Example:
        >>> layer = keras.layers.Dense(64, activation="gelu", kernel_initializer=ActivationScaling("gelu"))
        >>> round(ActivationScaling("gelu").gain, 5), round(ActivationScaling("tanh").gain, 5)
        (1.53353, 1.59254)
    """

    def __init__(
        self,
        activation,
        mode="fan_in",
        distribution="truncated_normal",
        kind="auto",
        mirrored=None,
        input_axes=None,
        output_axes=None,
        seed=None,
    ):
        check_one_of("mode", mode, MODES)
        self.kind = check_one_of("kind", kind, KINDS)
        self.mirrored = check_one_of("mirrored", mirrored, MIRRORED)
        check_one_of("distribution", distribution, DISTRIBUTIONS)
        if mirrored and kind != "auto":
            raise ValueError(
                f'`mirrored` must be None where `kind` is not "auto". Received: mirrored={mirrored!r}, kind={kind!r}'
            )
        self.activation = _activation(activation)
        self.gain = activation_gain(self.activation, mirrored in ("inputs", "both"))
        # The base class makes `EinsumDense`, and so attention, hand over which axes are summed.
        super().__init__(scale=self.gain**2, mode=mode, seed=0)  # None would draw from Python's `random`
        self._given_seed, self.seed = seed, as_seed(seed)
        self.distribution = distribution
        self.input_axes = _axes("input_axes", input_axes)
        self.output_axes = _axes("output_axes", output_axes)
        if (input_axes is None) != (output_axes is None):
            raise ValueError(
                "`input_axes` must be given together with `output_axes`. "
                f"Received: input_axes={input_axes!r}, output_axes={output_axes!r}"
            )

    def __call__(self, shape, dtype=None):
        shape, dtype = tuple(shape), keras.backend.standardize_dtype(dtype)
        axes = self._einsum_axes(shape)
        fan_in, fan_out = fans(shape, self.kind, *axes)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.gain**2 / max(1.0, fan)
        signs = self._signs(shape)
        half = tuple(size // 2 if axis in signs else size for axis, size in enumerate(shape))
        kernel = self._draw(half, math.sqrt(variance), working_dtype(dtype), axes)
        for axis in signs:
            kernel = keras.ops.concatenate([kernel, -kernel], axis=axis)
        return keras.ops.cast(kernel, dtype)

    def _einsum_axes(self, shape):
        if self.input_axes is not None:
            every, ndim = self.input_axes + self.output_axes, len(shape)
            if not all(-ndim <= i < ndim for i in every) or len({i % ndim for i in every}) < len(every):
                raise ValueError(
                    "ActivationScaling: `input_axes` and `output_axes` must be axes of the kernel, none twice. "
                    f"Received: input_axes={self.input_axes}, output_axes={self.output_axes}, a kernel of shape {shape}"
                )
            return [[i % len(shape) for i in axes] for axes in (self.input_axes, self.output_axes)]
        return attention_axes(shape) if self.kind == "attention" else (None, None)

    def _signs(self, shape):
        """The axes along which the second half is the first one with the opposite sign."""
        if self.mirrored is None:
            return ()
        if self.input_axes is not None or len(shape) < 2:
            raise ValueError(f"ActivationScaling: `mirrored` is for dense and convolution kernels. Received: {shape}")
        names = {"inputs": (-2,), "outputs": (-1,), "both": (-2, -1)}[self.mirrored]
        axes = tuple(len(shape) + axis for axis in names)
        if any(shape[axis] % 2 for axis in axes):
            which = "inputs and of outputs" if self.mirrored == "both" else self.mirrored
            raise ValueError(
                f"ActivationScaling: `mirrored={self.mirrored!r}` needs an even number of {which}. "
                f"Received: a kernel of shape {shape}"
            )
        return axes

    def _draw(self, shape, stddev, dtype, axes):
        if self.distribution == "truncated_normal":
            return keras.random.truncated_normal(shape, 0.0, stddev / _TRUNCATED_STDDEV, dtype, self.seed)
        if self.distribution == "normal":
            return keras.random.normal(shape, 0.0, stddev, dtype, self.seed)
        if self.distribution == "uniform":
            limit = math.sqrt(3) * stddev
            return keras.random.uniform(shape, -limit, limit, dtype, self.seed)
        if self.distribution == "delta_orthogonal":
            return self._delta_orthogonal(shape, stddev, dtype)
        return self._orthogonal(shape, stddev, dtype, *axes)

    def _delta_orthogonal(self, shape, stddev, dtype):
        if len(shape) < 3 or self.kind not in ("auto", "transposed") or self.input_axes is not None:
            raise ValueError(f'ActivationScaling: "delta_orthogonal" is for convolution kernels. Received: {shape}')
        # What the entries around the centre would contribute is the centre's, too.
        factor = stddev * math.sqrt(max(shape[-2:]) * math.prod(shape[:-2]))
        return at_centre(orthogonal(shape[-2:], self.seed, dtype) * factor, shape)

    def _orthogonal(self, shape, stddev, dtype, input_axes, output_axes):
        if len(shape) < 2:
            raise ValueError(f"ActivationScaling: an orthogonal kernel needs two axes or more. Received: {shape}")
        # `order` puts the axes of the kernel as (matrices, rows, columns).
        every = list(range(len(shape)))
        if input_axes is not None:
            order = [[i for i in every if i not in input_axes + output_axes], input_axes, output_axes]
        elif self.kind == "depthwise":
            order = [every[-2:-1], every[:-2], every[-1:]]
        elif self.kind == "transposed":
            order = [[], every[:-2] + every[-1:], every[-2:-1]]
        else:
            order = [[], every[:-1], every[-1:]]
        sizes = tuple(math.prod(shape[i] for i in axes) for axes in order)
        flat = [i for axes in order for i in axes]
        # An orthonormal matrix has entries of mean square 1 / max(rows, columns).
        matrices = orthogonal(sizes, self.seed, dtype) * (stddev * math.sqrt(max(sizes[1:])))
        kernel = keras.ops.reshape(matrices, [shape[i] for i in flat])
        return keras.ops.transpose(kernel, [flat.index(i) for i in every])

    def get_config(self):
        return {
            "activation": keras.activations.serialize(self.activation),
            "mode": self.mode,
            "distribution": self.distribution,
            "kind": self.kind,
            "mirrored": self.mirrored,
            "input_axes": self.input_axes,
            "output_axes": self.output_axes,
            "seed": keras.saving.serialize_keras_object(self._given_seed),
        }


def _activation(activation):
    try:
        return keras.activations.get(activation)
    except ValueError:
        accepted = "None, the name of a Keras activation, or a callable"
        error = ValueError if isinstance(activation, str) else TypeError
        raise error(f"`activation` must be {accepted}. Received: activation={activation!r}") from None


def _axes(name, axes):
    if axes is None:
        return None
    if not isinstance(axes, (list, tuple)) or not all(isinstance(i, int) and not isinstance(i, bool) for i in axes):
        raise TypeError(f"`{name}` must be None or a sequence of ints. Received: {name}={axes!r}")
    return list(axes)
