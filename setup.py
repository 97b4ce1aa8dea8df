"""Installation: `pip install -e . -c constraints.txt` (launch/quickstart.sh does it).

The upper bound on torch keeps pip from fetching a CUDA build where a CPU one is offered, and accepts the torch that
a GPU machine already has.
"""

from setuptools import find_packages, setup

setup(
    name="lemon-pipeline",
    version="0.1.0",
    description="Pretrain a small Transformer, expand it losslessly, go on training, account for every FLOP",
    packages=find_packages(include=["pipeline", "pipeline.*"]),
    package_data={"pipeline.report": ["templates/*"]},
    python_requires=">=3.11,<3.13",
    install_requires=[
        "torch>=2.11,<2.14",
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.17,<6",
        "datasets>=5,<6",
        "sentencepiece>=0.2",
        "pyyaml>=6",
        "pydantic>=2.10",
        "safetensors>=0.5",
        "rich>=13",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "pillow>=10",
    ],
    extras_require={
        "quickstart": ["scikit-learn>=1.5"],
        "vision": ["kornia>=0.8"],
        "tracking": ["tensorboard>=2.17"],
        "test": ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "scikit-learn>=1.5", "kornia>=0.8", "tensorboard>=2.17"],
    },
    entry_points={"console_scripts": ["lemon=pipeline.__main__:main"]},
)
