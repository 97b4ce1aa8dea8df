"""A run of Weights & Biases, written offline in the folder `wandb` of a stage. Nothing is sent: `wandb sync` does that.

An offline run cannot be gone on with: every start writes one with the stage's id, which holds all that was measured
before. It takes the place of those of earlier starts, in the folder here and on the server where it is synced again.
"""

import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.records.run_folder import write_text
from pipeline.training.trackers.tracker import Opening, Values

if TYPE_CHECKING:
    import wandb

FOLDER, ID_FILE = "wandb", "id.txt"


class OfflineWandb:
    def __init__(self, run: "wandb.Run"):
        self._run, self._step = run, 0
        run.define_metric("lemon/save/*", step_metric="lemon/save/step")

    def write(self, step: int, values: Values) -> None:
        """One row a step, which is complete when the next one begins; what comes behind it (a save that took a while)
        goes into the row of that."""
        self._step = max(self._step, step)
        self._run.log(dict(values), step=self._step)

    def close(self) -> None:
        """The service that writes the file ends with it: `finish` of an offline run does not wait for that."""
        import wandb

        self._run.finish()
        wandb.teardown()


def opened(opening: Opening) -> OfflineWandb:
    """The stage's run, with all that was measured before. Raises UserError for an id file that holds no id."""
    import wandb

    folder = opening.folder / FOLDER
    folder.mkdir(exist_ok=True)
    for former in folder.glob("offline-run-*"):
        shutil.rmtree(former)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    run = wandb.init(
        mode="offline",
        reinit="finish_previous",
        dir=str(opening.folder),
        id=_run_id(folder / ID_FILE),
        project=opening.run,
        name=opening.stage,
        config=opening.about,
        settings=_quiet(),
    )
    tracker = OfflineWandb(run)
    for step, values in opening.earlier:
        tracker.write(step, values)
    return tracker


def _quiet() -> "wandb.Settings":
    """Nothing of the machine, the code or the console is recorded."""
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_meta=True,
    )


def _run_id(path: Path) -> str:
    """The id of the stage's run, which all of its starts share; drawn by the first one."""
    if not path.exists():
        write_text(path, secrets.token_hex(4) + "\n")
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise UserError(f"{path}: '{text[:64]}' is no id of a run; remove the file, and another is drawn")
    return text
