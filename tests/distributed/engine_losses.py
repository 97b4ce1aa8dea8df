"""Worker of test_engine_parity: train a tiny model through our engine, write the losses.

JSON argument: family, stage fields (zero_stage, precision, …), steps, out.
"""

import json
import sys

from pipeline.hardware import settle

settle()

import torch  # noqa: E402
from parity_task import BATCH, ROUNDS, batch, model_config, stage  # noqa: E402

from pipeline import models  # noqa: E402
from pipeline.engine import Engine, join, leave  # noqa: E402


def main(job: dict) -> None:
    world = join()
    torch.set_num_threads(1)
    config = model_config(job["family"])
    engine = Engine(models.build(config, seed=5), stage(**job["stage"]), world, seed=0)
    losses = []
    for step in range(job["steps"]):
        micro = BATCH // world.size // ROUNDS
        parts = [batch(job["family"], step, (part * world.size + world.rank) * micro, micro) for part in range(ROUNDS)]
        losses.append(engine.step(parts, step, rate=1e-3)[0])
    if world.first:
        with open(job["out"], "w") as file:
            json.dump(losses, file)
    leave()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
