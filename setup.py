"""Installation: `pip install -e . -c constraints.txt` (launch/quickstart.sh does it).

The upper bound on torch keeps pip from fetching a CUDA build where a CPU one is offered, and accepts the torch that
a GPU machine already has.
"""

import ast
from pathlib import Path

from setuptools import find_packages, setup


def version() -> str:
    """`__version__` of the package, read without importing it: its dependencies may not be there yet."""
    source = Path(__file__).with_name("pipeline") / "__init__.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [
            "__version__"
        ]:
            return ast.literal_eval(node.value)
    raise SystemExit(f'{source}: no __version__ = "…" at the top level')


TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "filelock>=3.12",
    "hypothesis>=6.100",
    "scikit-learn>=1.5",
    "kornia>=0.8",
    "tensorboard>=2.17",
    "wandb>=0.31",
    "kubeflow-training>=1.9,<2",
]

setup(
    name="lemon-pipeline",
    version=version(),
    description="Pretrain a small Transformer, expand it losslessly, go on training, account for every FLOP",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["pipeline", "pipeline.*"]),
    package_data={"pipeline.report": ["templates/*"], "pipeline.studies": ["templates/*"]},
    python_requires=">=3.11,<3.13",
    install_requires=[
        "torch>=2.11,<2.14",
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.17,<6",
        "accelerate>=1",
        "blake3>=1,<2",
        "datasets>=5,<6",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2",
        "packaging>=23",
        "pillow>=10",
        "psutil>=5",
        "pyarrow>=19",
        "pydantic>=2.11",
        "pydantic-core>=2.33",
        "pyyaml>=6",
        "rich>=13",
        "safetensors>=0.5",
        "scipy>=1.13",
        "sentencepiece>=0.2",
    ],
    extras_require={
        "quickstart": ["scikit-learn>=1.5"],
        "vision": ["kornia>=0.8"],
        "tracking": ["tensorboard>=2.17", "wandb>=0.31"],
        "test": TEST,
        "dev": [*TEST, "ruff>=0.14", "mypy>=1.18", "pre-commit>=4", "types-PyYAML>=6"],
    },
    entry_points={"console_scripts": ["lemon=pipeline.cli:main"]},
)
