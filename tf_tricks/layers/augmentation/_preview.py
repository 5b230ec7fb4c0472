"""The picture of `Augmentation.preview`: images above augmented versions of themselves."""

import keras
import numpy as np

from tf_tricks._checks import check_integer
from tf_tricks._optional import import_optional
from tf_tricks.layers.augmentation._boxes import to_corners
from tf_tricks.layers.augmentation._inputs import are_masks_first, map_nest

_VERSIONS = 3  # rows below the originals


def preview(layer, images, columns, names=None):
    """Draw the grid; see `Augmentation.preview`."""
    columns = check_integer("columns", columns, 1)
    plt = import_optional("matplotlib.pyplot", "plot")
    given = images if isinstance(images, dict) else {"images": images}
    given = map_nest(keras.ops.convert_to_numpy, given)
    if given["images"].ndim != 4 or not len(given["images"]):
        raise ValueError(
            f"`images` must be a batch, of rank 4, with an image in it. Received: shape {given['images'].shape}"
        )
    columns = min(columns, len(given["images"]))
    # The whole batch goes through the layer: a layer that mixes images needs partners.
    rows = [given, *(map_nest(keras.ops.convert_to_numpy, layer(given, training=True)) for _ in range(_VERSIONS))]
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(2.2 * columns, 2.3 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for row, data in enumerate(rows):
        data = _channels_last(layer, data)
        value_range = _range_of(layer, data["images"])
        for column in range(columns):
            ax = axes[row, column]
            _draw(ax, layer, map_nest(lambda value, i=column: value[i], data), value_range, names)
            if column == 0:
                ax.set_ylabel("original" if row == 0 else f"augmented {row}")
    return figure


def _channels_last(layer, data):
    images, masks = data["images"], data.get("segmentation_masks")
    if masks is not None and are_masks_first(layer.data_format, masks.shape, images.shape):
        data = {**data, "segmentation_masks": masks.transpose(0, 2, 3, 1)}
    return {**data, "images": images.transpose(0, 2, 3, 1)} if layer.data_format == "channels_first" else data


def _range_of(layer, images):
    """(low, high) of what is black and white; to layers whose range does not matter nobody has told it."""
    if layer.range_matters:
        return layer.value_range
    low, high = float(np.min(images)), float(np.max(images))
    if low < 0.0 or high > 255.0:
        return (low, high) if high > low else (low, low + 1.0)
    return (0.0, 255.0) if high > 1.0 or np.issubdtype(images.dtype, np.integer) else (0.0, 1.0)


def _draw(ax, layer, data, value_range, names):
    """One image, its mask over it, its boxes and key points, its label as the title."""
    ax.set_xticks([])
    ax.set_yticks([])
    image = np.asarray(data["images"], "float32")
    low, high = value_range
    image = np.clip((image - low) / (high - low), 0.0, 1.0)
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    ax.imshow(np.squeeze(image, -1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    if "segmentation_masks" in data:
        mask = np.asarray(data["segmentation_masks"], "float32")
        if mask.ndim == 3:  # one-hot, or one channel of class numbers
            mask = mask[..., 0] if mask.shape[-1] == 1 else np.argmax(mask, axis=-1).astype("float32")
        ax.imshow(np.ma.masked_equal(mask, 0), cmap="tab10", alpha=0.4, vmin=0, vmax=10, interpolation="nearest")
    if "bounding_boxes" in data:
        _draw_boxes(ax, layer, data["bounding_boxes"], image.shape[:2])
    if "keypoints" in data:
        points = np.asarray(data["keypoints"], "float32")
        ax.plot(points[..., 0].ravel(), points[..., 1].ravel(), "y.", markersize=4)
    ax.set_xlim(-0.5, image.shape[1] - 0.5)
    ax.set_ylim(image.shape[0] - 0.5, -0.5)
    if "labels" in data:
        ax.set_title(_label(np.asarray(data["labels"]), names), fontsize=8)


def _formats(layer):
    """The formats of boxes of a layer and of its members, theirs among them."""
    own = {getattr(layer, "bounding_box_format", None)} - {None}
    return own.union(*map(_formats, getattr(layer, "layers", [])))


def _draw_boxes(ax, layer, boxes, size):
    formats = _formats(layer)
    if not formats:
        raise ValueError("Boxes are drawn if a member has a `bounding_box_format`. Received: none has")
    values = np.asarray(boxes["boxes"], "float32")
    corners = np.stack(to_corners(np, values, sorted(formats)[0], size), axis=-1)
    labels = np.asarray(boxes.get("labels", np.zeros(len(values)))).reshape(len(values), -1)  # one-hot, or numbers
    for (left, top, right, bottom), label in zip(corners, labels, strict=True):
        if label.max() >= 0 and right > left and bottom > top:  # -1 marks a row that is no box
            x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
            # Edges lie between pixels, whose centres are the whole numbers of the axes.
            ax.plot(np.array(x) - 0.5, np.array(y) - 0.5, color="lime", linewidth=1.2)


def _label(label, names):
    """The class, or the classes and their shares."""
    name = (lambda i: names[i]) if names is not None else str
    if label.size == 1:
        number = label.reshape(())
        return name(int(number)) if np.issubdtype(label.dtype, np.integer) else f"{float(number):.2f}"
    label = label.ravel()
    best = [i for i in np.argsort(-label)[:2] if label[i] > 0.005]
    return ", ".join(f"{name(int(i))} {label[i]:.2f}" for i in best)
