"""What preparing text costs: tokenising by one process and by several, memory at two sizes, and 20 GB projected.

    python benchmarks/prepare_speed.py --text 'wiki/*.txt.xz' --vocabulary vocab.txt
    python benchmarks/prepare_speed.py --text 'wiki/*.txt.xz' --vocabulary vocab.txt --rounds 1 --memory 400

`--text`: files, folders or a glob, as `data.dataset` takes them. Rounds are interleaved: in each, every number of
processes once, in turn; numbers are medians with the smallest and the largest, ratios those of the same round. Speeds a
core are by the CPU time of all processes together, so that they hold on a machine that is not idle, too.
`--memory MB`: instead, the largest anonymous memory (RssAnon) of any process while a text is prepared that is repeated
up to this size, and one of twice the size.
"""

import argparse
import logging
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

from benchmarks.memory import anonymous
from pipeline.config.data import TextData
from pipeline.data import prepare, tokenizers
from pipeline.data.census import Census
from pipeline.data.documents import Corpus, corpora
from pipeline.data.packing import IdFile, Reading, id_type, pack

WIKIPEDIA = 20e9
"""Bytes of text of the English Wikipedia (dump of 2023-11, about)."""


def data(options: argparse.Namespace, text: Path | str) -> TextData:
    chosen = {"kind": "wordpiece", "path": str(options.vocabulary)} if options.vocabulary else {"vocab_size": 30522}
    return TextData.model_validate({"kind": "text", "dataset": str(text), "tokenizer": chosen})


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def packed(
    corpus: Corpus, census: Census, tokenizer: tokenizers.Tokenizer, work: Path, processes: int
) -> tuple[float, float, int]:
    """Tokenise and pack the whole corpus: seconds, CPU seconds of all processes, tokens."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    begun, cpu, reading = time.perf_counter(), cpu_seconds(), Reading(corpus, set(), "")
    with IdFile(work / "ids", work / "parts", id_type(tokenizer.size), tokenizer.special["sep"]) as file:
        pack(reading, tokenizer, 126, file, census.tally.facts(), processes)
        return time.perf_counter() - begun, cpu_seconds() - cpu, file.count


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def speeds(options: argparse.Namespace, work: Path) -> None:
    """Speeds with each number of processes, and what 20 GB would take."""
    config = data(options, options.text)
    corpus, _ = corpora(config)
    documents = list(corpus)
    size = sum(len(text.encode()) for text in documents)
    corpus = Corpus(corpus.name, lambda: documents)
    begun = cpu_seconds()
    census = Census.of(corpus, 12 * 256 * 128, learn=config.tokenizer.kind == "sentencepiece")
    counting = cpu_seconds() - begun
    tokenizer = tokenizers.create(config.tokenizer, census.learning_text(), work / "tokenizer")
    tokens = 0
    walls: dict[int, list[float]] = {number: [] for number in options.processes}
    cpus: dict[int, list[float]] = {number: [] for number in options.processes}
    for number in options.processes * options.rounds:
        wall, cpu, tokens = packed(corpus, census, tokenizer, work / "packed", number)
        walls[number].append(wall)
        cpus[number].append(cpu)
    print(f"{len(documents):,} documents, {size / 1e6:.1f} MB, {tokens:,} tokens, {config.tokenizer.kind}; ", end="")
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(
        f"counting: {size / counting / 1e6:.1f} MB a CPU second, 20 GB: {WIKIPEDIA / size * counting / 60:.1f} minutes"
    )
    one = walls[options.processes[0]]
    for number in options.processes:
        ratio = spread([before / now for before, now in zip(one, walls[number], strict=True)])
        print(f"{number} processes: {spread([size / 1e6 / wall for wall in walls[number]])} MB/s, {ratio} x the first")
        megabytes, millions = ([amount / 1e6 / cpu for cpu in cpus[number]] for amount in (size, tokens))
        hours = WIKIPEDIA / size * statistics.median(cpus[number]) / 3600
        print(
            f"    a core: {spread(megabytes)} MB/s, {spread(millions)} million tokens/s; 20 GB: {hours:.2f} core hours"
        )


def repeated(documents: list[str], size: int, path: Path) -> None:
    """A file of about `size` bytes: the documents again and again, a number before each, so that none is a copy."""

    def lines() -> Iterator[str]:
        written = number = 0
        while written < size:
            text = f"{number} {documents[number % len(documents)].strip()}\n\n"
            written, number = written + len(text.encode()), number + 1
            yield text

    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines())


def memory(options: argparse.Namespace, work: Path) -> None:
    """RssAnon while texts of two sizes are prepared, each in a process of its own."""
    documents = list(corpora(data(options, options.text))[0])
    for size in (options.memory, 2 * options.memory):
        repeated(documents, int(size * 1e6), work / "text.txt")
        child = multiprocessing.get_context("spawn").Process(
            target=prepare, args=(data(options, work / "text.txt"), 0, work / "data", options.processes[-1])
        )
        begun = time.perf_counter()
        child.start()
        peak, done = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(child.pid, peak, done))
        watcher.start()
        child.join()
        done.set()
        watcher.join()
        taken = time.perf_counter() - begun
        print(f"{size:,} MB: {peak[0] / 2**20:,.0f} MiB RssAnon, {taken:,.0f} s, {options.processes[-1]} processes")
        shutil.rmtree(work / "data")


def _watch(pid: int, peak: list[int], done: threading.Event) -> None:
    while not done.wait(0.1):
        peak[0] = max(peak[0], anonymous(pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument(
        "--vocabulary", type=Path, help="a BERT vocab.txt; without it SentencePiece learns 30,522 pieces"
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, metavar="MB")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    work = Path(tempfile.mkdtemp())
    try:
        (memory if options.memory else speeds)(options, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
