"""Optional packages, imported where they are used, by the name of the extra that brings them."""

import importlib
from types import ModuleType


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        ImportError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is missing; install it with: pip install 'qrhead-rag[{extra}]'") from error
