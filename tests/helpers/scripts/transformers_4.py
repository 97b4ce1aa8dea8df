"""What another transformers makes of folders, for an interpreter that has it: `python transformers_4.py JOBS OUT`.

JOBS holds the folders, each with the inputs of its model; OUT gets of each the first output in float64 and what
`from_pretrained` complained about; of a folder that cannot be loaded, no output and why.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor


def given_out(folder: str, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, list[str]]]:
    """Of the class that the folder's config names, without a pooler where that says so; with plain attention where
    scores are capped, which this transformers forgets without it."""
    config = json.loads((Path(folder) / "config.json").read_text())
    loader: Any = getattr(transformers, config["architectures"][0])
    options: dict[str, Any] = {} if config.get("has_pooler", True) else {"add_pooling_layer": False}
    options |= {"attn_implementation": "eager"} if config.get("attn_logit_softcapping") else {}
    model, report = loader.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True, **options)
    with torch.no_grad():
        output = model.double().eval()(**inputs)[0]
    return output, {kind: sorted(map(str, names)) for kind, names in report.items() if names}


def tried(folder: str, inputs: dict[str, Tensor]) -> tuple[Tensor | None, dict[str, list[str]]]:
    """The same, of a folder that may not load."""
    try:
        return given_out(folder, inputs)
    except Exception as error:
        return None, {"error": [repr(error)]}


def main(jobs: str, out: str) -> None:
    """Every folder that JOBS names."""
    results = {folder: tried(folder, inputs) for folder, inputs in torch.load(jobs).items()}
    torch.save({"version": transformers.__version__, "results": results}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
