"""Packaging of ist_hpc."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return the version that the package states, without importing it (and with it, MPI)."""
    text = (ROOT / "ist_hpc" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('ist_hpc/__init__.py has no line __version__ = "..."')
    return match[1]


HOROVOD = ["horovod>=0.28.1"]  # see INSTALL.md: pip alone cannot build it against a recent torch
SPEECH = ["librosa>=0.10", "soundfile>=0.12"]
PLOT = ["matplotlib>=3.8"]
DEV = ["pytest>=8", "hypothesis>=6.100", "ruff>=0.12", "mypy>=1.10", "types-PyYAML>=6"]

setup(
    name="ist_hpc",
    version=read_version(),
    description="Independent subnet training on MPI clusters",
    packages=find_packages(include=["ist_hpc", "ist_hpc.*"]),
    package_data={"ist_hpc.config": ["quickstart.yaml"]},
    python_requires=">=3.11",
    install_requires=[
        "mpi4py>=4.0",  # 4.0: counts beyond 2^31 where the MPI has them
        "torch>=2.1",
        "numpy>=2.0",
        "h5py>=3.10",
        "pydantic>=2.8",
        "pyyaml>=6.0",
        "scikit-learn>=1.5",
        "tqdm>=4.60",
        "psutil>=5.9",
    ],
    entry_points={"console_scripts": ["ist-hpc = ist_hpc.__main__:script"]},
    extras_require={"horovod": HOROVOD, "speech": SPEECH, "plot": PLOT, "dev": DEV + SPEECH + PLOT},
)
