"""What fit_hooks/precision.py relies on."""

import keras

from tests.fit_hooks.assumptions import assumes
from tf_tricks._backend import BACKEND


@assumes("keras.backend.result_type.BIT64_TO_BIT32_DTYPE")
def test_a_table_turns_the_results_of_doubles_into_float32():
    table = keras.backend.result_type.__globals__["BIT64_TO_BIT32_DTYPE"]
    sentence = (
        "fit_hooks/precision.py: `keras.backend.result_type` no longer looks up the type of doubles in a table of its "
        "module: gradients may be checked in float32 without need"
    )
    assert table["float64"] == ("float64" if BACKEND == "tensorflow" else "float32"), sentence
    before = table["float64"]
    try:
        for dtype in ("float64", "float32"):
            table["float64"] = dtype
            assert keras.backend.result_type("float64", float) == dtype, sentence
    finally:
        table["float64"] = before
