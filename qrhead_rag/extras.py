"""Optional packages, imported where they are used."""

import importlib
from types import ModuleType


def require_extra(module: str, extra: str) -> ModuleType:
    """Import a package that an extra of this one installs.

    Raises:
        ImportError: it is not installed; the message has the command that installs it.

    >>> require_extra("json", "eval").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is missing; install it with: pip install 'qrhead-rag[{extra}]'") from error
