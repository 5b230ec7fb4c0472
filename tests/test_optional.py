import math
import subprocess
import sys

import pytest

from tf_tricks._optional import import_optional

pytestmark = pytest.mark.any_backend


@pytest.fixture
def without(monkeypatch):
    """Make a package look as if it were not installed."""

    class Missing:
        def __init__(self, name):
            self.name = name

        def find_spec(self, fullname, path=None, target=None):
            if fullname.partition(".")[0] == self.name:
                raise ModuleNotFoundError(f"No module named {self.name!r}", name=self.name)

    def hide(name):
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "meta_path", [Missing(name), *sys.meta_path])

    return hide


def test_import_optional_returns_the_module_that_is_there():
    assert import_optional("math", "plot") is math
    assert import_optional("importlib.util", "plot") is sys.modules["importlib.util"]


@pytest.mark.parametrize(
    ("module", "extra", "sentence"),
    [
        ("matplotlib.pyplot", "plot", "plotting needs matplotlib: pip install 'tf-tricks[plot]'"),
        ("sklearn.datasets", "examples", "this example needs scikit-learn: pip install 'tf-tricks[examples]'"),
    ],
)
def test_a_missing_package_is_named_in_one_sentence_with_its_pip_command(without, module, extra, sentence):
    without(module.partition(".")[0])
    with pytest.raises(ImportError) as caught:
        import_optional(module, extra)
    assert str(caught.value) == sentence
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_an_error_inside_an_installed_package_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_module_that_nobody_has'"):
        import_optional("half_installed", "plot")


def test_the_caller_may_say_what_needs_the_package():
    with pytest.raises(ImportError, match=r"^`log_dir` needs a-module-that-nobody-has: pip install"):
        import_optional("a_module_that_nobody_has", "tensorflow", purpose="`log_dir`")


def test_no_backend_gives_one_sentence_with_the_command():
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'jax', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "try:\n"
        "    import tf_tricks\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "pip install 'tf-tricks[cpu]'" in done.stdout
