"""`tests/gpu/h200.py` begins with what a GPU machine without a network has."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ABSENT = ["click", "duckdb", "fastapi", "faiss", "jieba", "matplotlib", "orjson", "pyarrow", "pydantic", "redis"]


def test_its_imports_need_neither_the_service_nor_what_reads_data():
    script = f"""
import importlib, runpy, sys
names = {[*ABSENT, "service", "indexer"]}
runpy.run_path({str(ROOT / "tests/gpu/h200.py")!r})
print([name for name in names if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout == "[]\n"
