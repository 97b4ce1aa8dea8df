"""The losses of fits after 10, 30, 100 and 300 steps, as a table: python benchmarks/fit_table.py runs/growth-fits

Of a run by configs/growth/fits.yaml: the first evaluation of a fit and its last one; of one that is called `published`,
those that it has passed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

from pipeline.config.schema import FIT
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_records import EvaluationRecord

STEPS = (10, 30, 100, 300)


def losses(fit: Path) -> dict[int, float]:
    """By step."""
    return {r.step: r.eval_loss for r in StageFolder(fit).metrics if isinstance(r, EvaluationRecord)}


def row(run: Path, start: str, preset: str) -> str:
    """A line of the table: the start, the loss before the first step and after so many."""
    names = [f"{start}-{preset if preset == 'published' else steps}{FIT}" for steps in STEPS]
    found = [losses(run / name) for name in names]
    cells = [f"{found[0].get(0, float('nan')):.4f}"]
    cells += [f"{each[steps]:.4f}" if steps in each else "" for steps, each in zip(STEPS, found, strict=True)]
    return f"| `{start}` | {preset} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    run = parser.parse_args().run
    starts = dict.fromkeys(path.name.removesuffix(f"-10{FIT}") for path in sorted(run.glob(f"*-10{FIT}")))
    print(f"| start | recipe | 0 | {' | '.join(map(str, STEPS))} |\n|---|---|---|{'---|' * len(STEPS)}")
    for start in starts:
        for preset in ("default", "published"):
            print(row(run, start, preset))


if __name__ == "__main__":
    main()
