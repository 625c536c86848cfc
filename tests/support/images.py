"""What an image holds, and what deploy/images.toml says that it may."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parent.parent.parent / "deploy" / "images.toml"
MB = 1_000_000
# Nothing builds, installs or becomes another user in an image that serves.
TOOLS = ("pip", "pip3", "gcc", "cc", "g++", "make", "ld")

# Runs inside an image, as its user; prints what `Contents` takes.
PROBE = f"""
import importlib.metadata, importlib.util, json, os, shutil
def walk():
    for folder, folders, files in os.walk('/'):
        if folder in ('/proc', '/sys', '/dev', '/run', '/tmp', '/var/tmp'):
            folders.clear()
        else:
            yield from (os.path.join(folder, name) for name in ['.', *files])
def owned(path):
    return os.access(path, os.W_OK, follow_symlinks=False) and not os.path.islink(path)
found = list(walk())
cuda = None
if importlib.util.find_spec('torch'):
    import torch
    cuda = torch.version.cuda or 'cpu'
print(json.dumps({{
    'user': os.getuid(),
    'packages': sorted(one.metadata['Name'].lower().replace('_', '-') for one in importlib.metadata.distributions()),
    'torch': cuda,
    'tools': [name for name in {TOOLS!r} if shutil.which(name)]
        + [name for name in ('pip', 'ensurepip') if importlib.util.find_spec(name)],
    'setuid': [path for path in found if os.path.isfile(path) and os.stat(path).st_mode & 0o6000],
    'writable': sorted({{os.path.dirname(path) for path in found if owned(path)}}),
}}))
"""


@dataclass(frozen=True)
class Contents:
    """What was found in an image. ``torch`` is "cpu", the version of CUDA, or None."""

    size_bytes: int
    user: int
    packages: list[str]
    torch: str | None
    tools: list[str]
    setuid: list[str]
    writable: list[str]


def problems(target: str, found: Contents) -> list[str]:
    """One clear line for each thing that is not as it should be."""
    rule = tomllib.loads(TABLE.read_text())[target]
    size, most = found.size_bytes / MB, rule["max_mb"]
    wanted = rule.get("torch")
    said = []
    if size > most:
        said.append(f"{target}: {size:.0f} MB, and deploy/images.toml allows {most}")
    said += [f"{target}: holds {name}, which it must not" for name in rule["without"] if name in found.packages]
    if found.torch and found.torch != wanted:
        build = "the CPU build" if found.torch == "cpu" else f"the build for CUDA {found.torch}"
        said.append(f"{target}: torch is {build}, not {wanted}")
    if found.user == 0:
        said.append(f"{target}: runs as root")
    said += [f"{target}: holds {tool}, which only builds or installs" for tool in found.tools]
    said += [f"{target}: {path} lets a process become another user" for path in found.setuid]
    said += [
        f"{target}: its user may write to {folder}"
        for folder in found.writable
        if not folder.startswith("/var/lib/notellm")
    ]
    return said
