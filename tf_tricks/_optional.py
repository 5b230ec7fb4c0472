"""Import a package that only some features need, or say in one sentence how to install it."""

import importlib

_PURPOSES = {
    "plot": "plotting",
    "checkpoints": "a checkpoint",
    "remote": "a checkpoint at a URL",
    "examples": "this example",
    "tensorflow": "this feature",
    "cpu": "this feature",
    "jax": "this feature",
    "torch": "this feature",
}
_PIP_NAMES = {"sklearn": "scikit-learn"}  # where it is not the module's name with dashes


def import_optional(module_name, extra, purpose=None):
    """Return the module `module_name`, which the extra `extra` of tf-tricks installs.

    Args:
        module_name: str, the module with its dots, such as "matplotlib.pyplot".
        extra: str, name of the extra in setup.cfg.
        purpose: str or None, what needs the module; None: what the extra is for.
    Raises:
        ImportError: the package is not installed; the message has the pip command.
    Example:
        >>> import_optional("math", "plot").sqrt(4.0)
        2.0
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = module_name.partition(".")[0]
        if error.name != package:  # installed, but something inside it is broken: that error tells more than ours
            raise
        pip_name = _PIP_NAMES.get(package, package.replace("_", "-"))
        raise ImportError(
            f"{purpose or _PURPOSES[extra]} needs {pip_name}: pip install 'tf-tricks[{extra}]'", name=package
        ) from None
