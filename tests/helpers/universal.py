"""DeepSpeed's own converter to its universal layout, in this process."""

import argparse
from pathlib import Path

from deepspeed.checkpoint import ds_to_universal


def convert(source: Path, out: Path) -> None:
    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    how = {"strict": True, "inject_missing_state": True, "keep_temp_folder": False, **workers}
    ds_to_universal.main(argparse.Namespace(input_folder=str(source), output_folder=str(out), **how))
