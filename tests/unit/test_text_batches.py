"""Text: masks that count; batches that depend neither on ranks nor on workers nor on resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.data import TextData
from pipeline.data import evaluation_batches, prepare, train_batches
from pipeline.data.text import TextSamples
from tests.helpers.invented_text import config, some_documents, text_file
from tests.helpers.processes import FORK

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    data = config(text_file(folder / "text.txt", some_documents()))
    return data, prepare(data, 3, folder / "data")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    data = TextData(kind="text", block=64, tokenizer={"vocab_size": 2048})
    return data, prepare(data, 0, folder)


def same(one, other) -> bool:
    return (
        one.valid == other.valid
        and torch.equal(one.labels, other.labels)
        and all(torch.equal(one.inputs[key], other.inputs[key]) for key in one.inputs)
    )


def training(prepared, data, seed=3, batch=8, micro_batch=8, rank=0, world=1, first_step=0):
    return train_batches(
        prepared, data, seed, batch=batch, micro_batch=micro_batch, rank=rank, world=world, first_step=first_step
    )


# --- masks ---------------------------------------------------------------------------------------------------------


def test_masks_have_exactly_the_asked_positions_and_hide_nothing_else(small):
    data, prepared = small
    facts, samples = prepared.facts, TextSamples(prepared.folder, prepared.facts)
    rows = np.arange(facts["training"])
    inputs, labels = samples.train(3, np.zeros_like(rows), rows)
    ids, positions = inputs["input_ids"], inputs["masked_positions"]
    assert ids.shape == (len(rows), 32) and positions.shape == labels.shape == (len(rows), 4) and data.scored == 4
    assert ids.dtype == positions.dtype == labels.dtype == torch.int64
    assert positions.min() >= 1 and positions.max() <= 30
    assert (positions.diff(dim=1) > 0).all()  # sorted, so none twice
    assert (ids[:, 0] == facts["special"]["cls"]).all() and (ids[:, -1] == facts["special"]["sep"]).all()
    restored = ids.scatter(1, positions, labels)
    assert torch.equal(restored[:, 1:-1], torch.from_numpy(np.array(samples.rows["training"], dtype=np.int64)))


def test_masks_are_80_10_10_and_cover_every_position(quickstart):
    _, prepared = quickstart
    facts = prepared.facts
    rows = np.arange(facts["training"])
    inputs, labels = TextSamples(prepared.folder, facts).train(0, np.zeros_like(rows), rows)
    shown = inputs["input_ids"].gather(1, inputs["masked_positions"])
    count = labels.numel()
    kept = ((shown == labels) & (shown != facts["special"]["mask"])).sum().item() / count
    masked = (shown == facts["special"]["mask"]).sum().item() / count
    # Binomial deviations of about 80,000 draws are 0.0014 and 0.0011; a random id is the mask or the label at times.
    assert abs(masked - 0.8) < 0.006 and abs(kept - 0.1) < 0.005
    assert set(inputs["masked_positions"].unique().tolist()) == set(range(1, 63))
    random_ids = shown[(shown != labels) & (shown != facts["special"]["mask"])]
    assert random_ids.max() > 0.99 * facts["vocab_size"] and len(random_ids.unique()) > 0.9 * facts["vocab_size"]


def test_a_mask_is_a_function_of_seed_epoch_and_row(small):
    samples = TextSamples(small[1].folder, small[1].facts)

    def positions(seed, epoch, rows):
        return samples.train(seed, np.full(len(rows), epoch), np.array(rows))[0]["masked_positions"]

    whole = positions(3, 1, [5, 6, 7, 8])
    assert torch.equal(positions(3, 1, [8, 5]), whole[[3, 0]])
    assert not torch.equal(positions(3, 2, [5, 6, 7, 8]), whole)
    assert not torch.equal(positions(4, 1, [5, 6, 7, 8]), whole)


def test_the_embedded_corpus_needs_no_files(quickstart):
    facts = quickstart[1].facts
    assert facts["vocab_size"] == 2048 and facts["block"] == 64 and facts["scored"] == 9
    assert facts["documents"] > 500 and facts["training"] > 6000 and facts["evaluation"] == 256
    assert facts["tokens_per_sample"] == 64
    assert json.loads(json.dumps(facts)) == facts


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_step", [1, 7, 100])  # the last lies beyond the first epoch
def test_resuming_at_a_step_equals_skipping_to_it(small, first_step):
    data, prepared = small
    whole = islice(training(prepared, data, batch=24, micro_batch=8), first_step * 3, first_step * 3 + 6)
    resumed = islice(training(prepared, data, batch=24, micro_batch=8, first_step=first_step), 6)
    assert all(same(one, other) for one, other in zip(whole, resumed, strict=True))


def test_two_ranks_see_what_one_sees(small):
    data, prepared = small
    one = list(islice(training(prepared, data, batch=16, micro_batch=4), 12))
    ranks = [list(islice(training(prepared, data, batch=16, micro_batch=4, rank=rank, world=2), 6)) for rank in (0, 1)]
    two = [part for turn in zip(*ranks, strict=True) for part in turn]
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_an_epoch_reads_every_row_once(small):
    data, prepared = small
    rows = np.array(TextSamples(prepared.folder, prepared.facts).rows["training"], dtype=np.int64)
    seen = []
    for batch in islice(training(prepared, data, batch=1, micro_batch=1), prepared.size):
        restored = batch.inputs["input_ids"].scatter(1, batch.inputs["masked_positions"], batch.labels)
        seen.append(tuple(restored[0, 1:-1].tolist()))
    assert Counter(seen) == Counter(map(tuple, rows.tolist()))
    assert seen != list(map(tuple, rows.tolist()))


def test_loader_workers_change_nothing(small):
    data, prepared = small
    workers = data.model_copy(update={"workers": 2})
    for make in (
        lambda d: islice(training(prepared, d, batch=16, micro_batch=4, first_step=3), 20),
        lambda d: evaluation_batches(prepared, d, 3, micro_batch=3, rank=0, world=1),
    ):
        assert all(same(a, b) for a, b in zip(make(data), make(workers), strict=True))


def test_reading_leaves_the_generator_of_the_model_alone(small):
    data, prepared = small
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(islice(training(prepared, data), 3))
    list(evaluation_batches(prepared, data, 3, micro_batch=4, rank=0, world=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_process_ends_whose_loader_still_has_workers(small):
    data, prepared = small[0].model_copy(update={"workers": 1}), small[1]
    kept = []

    def work() -> None:
        read = iter(evaluation_batches(prepared, data, 3, micro_batch=4, rank=0, world=1))
        kept.extend([read, next(read)])

    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code == 0


def test_loader_workers_end_with_a_killed_parent(small):
    _, prepared = small
    script = (
        "import multiprocessing, sys, time\n"
        "from pathlib import Path\n"
        "from pipeline.config.data import TextData\n"
        "from pipeline.data import open_prepared, train_batches\n"
        "data = TextData(kind='text', block=32, workers=2)\n"
        "batches = train_batches(open_prepared(Path(sys.argv[1])), data, 0,"
        " batch=4, micro_batch=4, rank=0, world=1, first_step=0)\n"
        "next(batches)\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(prepared.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while any(_runs(pid) for pid in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in children)


def _runs(pid: int) -> bool:
    """Whether the process lives; one that ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 3, 8, 50])
def test_evaluation_is_one_fixed_set_in_equal_shares(small, world, micro_batch):
    data, prepared = small
    shares = [
        list(evaluation_batches(prepared, data, 3, micro_batch=micro_batch, rank=rank, world=world))
        for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    assert {batch.labels.shape for share in shares for batch in share} == {(micro_batch, data.scored)}
    counted = [batch.labels[: batch.valid] for turn in zip(*shares, strict=True) for batch in turn]
    _, expected = TextSamples(prepared.folder, prepared.facts).evaluate(3, np.arange(8))
    assert torch.equal(torch.cat(counted), expected)


def test_unigram_measures_match_a_plain_count(small):
    """Of the ordinary pieces, which alone are predicted: the five special ones come first."""
    data, prepared = small
    facts, samples = prepared.facts, TextSamples(prepared.folder, prepared.facts)
    own = Counter(token for token in samples.rows["evaluation"].ravel().tolist() if token > 4)
    total = sum(own.values())
    assert facts["unigram_entropy"] == pytest.approx(-sum(n / total * log(n / total) for n in own.values()))
    learned = Counter(token for token in samples.rows["training"].ravel().tolist() if token > 4)
    whole = sum(learned.values()) + facts["pieces"] - 5
    batches = evaluation_batches(prepared, data, 3, micro_batch=1, rank=0, world=1)
    labels = [token for batch in batches for token in batch.labels.ravel().tolist()]
    expected = -sum(log((learned[token] + 1) / whole) for token in labels) / len(labels)
    assert facts["unigram_cross_entropy"] == pytest.approx(expected)
