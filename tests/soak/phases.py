"""What a command is at: told from the files of its run."""

from tests.helpers.runs import records
from tests.soak.chains import TRAINED, Chain
from tests.soak.commands import Command

OFFLINE = {"reshard": "resharding", "grown": "expanding"}
"""By part of a run; the phases of training stages are starting, training and saving."""


class Start:
    """A command of a run, and where it began: the newest checkpoints of that moment."""

    def __init__(self, chain: Chain, command: Command):
        self.chain, self.command = chain, command
        self.base = {stage: chain.saved(stage) for stage in TRAINED}

    def steps(self, stage: str) -> int:
        """The last step that this command has finished; 0: none yet."""
        last = self.chain.trained(stage, self.command.begun_at)
        return last if last > self.base[stage] else 0

    @property
    def phase(self) -> str:
        part = self.chain.part
        if part is None:
            return "ending"
        if part in OFFLINE:
            return OFFLINE[part]
        if not self.steps(part):
            return "starting"
        return "saving" if self.chain.saving(part) else "training"


def seconds_to_save(chain: Chain) -> list[float]:
    """From its begin until it is published, of every checkpoint that a finished run has written."""
    saved = [record for stage in TRAINED for record in records(chain.run, stage) if record["kind"] == "save"]
    return [record["published_seconds"] or record["save_seconds"] for record in saved]
