"""Imports of what an extra of the package brings; its absence is one sentence that names the extra."""

import importlib
from typing import Any

from hpdval_edge.errors import MissingDependency


def import_from(extra: str, module: str) -> Any:
    """Import ``hpdval_edge.<module>``; MissingDependency names ``extra`` where its packages are absent."""
    try:
        return importlib.import_module(f"hpdval_edge.{module}")
    except ImportError as error:
        missing = error.name or error
        raise MissingDependency(f"{missing} is not installed; run: pip install 'hpdval-edge[{extra}]'.") from error
