"""Images: from every source to the same stored form; pixels, labels and augmentations that repeat."""

import io
import json
import math
import multiprocessing
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from pydantic import ValidationError

from pipeline.config.data import ImageData
from pipeline.data import (
    augment,
    evaluation_batches,
    image_building,
    image_tables,
    open_prepared,
    prepare,
    train_batches,
)
from pipeline.data.image_tables import ImageTables
from pipeline.data.images import ImageSamples
from pipeline.data.sources import HubSplit
from pipeline.data.views import Views
from pipeline.errors import UserError

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "images" / "cifar10"
needs_cifar = pytest.mark.skipif(not CIFAR.exists(), reason="the shared real images are not here")


def config(dataset: object = "embedded", **changes) -> ImageData:
    return ImageData(kind="images", dataset=dataset if isinstance(dataset, list) else str(dataset), **changes)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def pictures(count: int, side: int = 8) -> list[np.ndarray]:
    """RGB noise, (side, side, 3) uint8, different for each."""
    return list(np.random.Generator(np.random.Philox(key=1)).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    pytest.importorskip("sklearn")
    data = config()
    return data, prepare(data, 3, tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """60 pictures of 32x32 in three classes, as a parquet file."""
    folder = tmp_path_factory.mktemp("noise")
    rows = [{"bytes": png(image), "path": None} for image in pictures(60, 32)]
    pa.parquet.write_table(pa.table({"image": rows, "label": [n % 3 for n in range(60)]}), folder / "noise.parquet")
    data = config(folder / "noise.parquet", size=32)
    return data, prepare(data, 3, folder / "data")


def same(one, other) -> bool:
    return (
        one.valid == other.valid
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
    )


def training(prepared, data, batch=8, micro_batch=8, rank=0, world=1, first_step=0):
    return train_batches(
        prepared, data, 3, batch=batch, micro_batch=micro_batch, rank=rank, world=world, first_step=first_step
    )


def stored(prepared, split: str = "training") -> np.ndarray:
    """Every picture of a split, in order, uint8."""
    facts = prepared.facts
    found, _ = ImageSamples(prepared.folder, facts).read(split, np.arange(facts[split]))
    return np.stack([np.asarray(picture) for picture in found])


# --- digits --------------------------------------------------------------------------------------------------------


def test_the_digits_are_all_there_and_a_fifth_is_held_out(digits):
    from sklearn.datasets import load_digits

    facts = digits[1].facts
    assert facts["training"] == 1438 and facts["evaluation"] == 359
    assert facts["classes"] == 10 and facts["class_names"] == [str(digit) for digit in range(10)]
    assert facts["tokens_per_sample"] == 1 and json.loads(json.dumps(facts)) == facts
    mine = np.concatenate([stored(digits[1], split)[..., 0] for split in ("training", "evaluation")])
    theirs = load_digits().images
    levels = np.rint(mine * (16 / 255)).astype(np.uint8)
    assert sorted(map(bytes, levels)) == sorted(map(bytes, theirs.astype(np.uint8)))


def test_pixels_are_normalised_by_the_training_set(digits):
    data, prepared = digits
    batch = next(training(prepared, data, batch=1438, micro_batch=1438))
    values = batch.inputs["pixel_values"]
    assert values.shape == (1438, 3, 8, 8) and values.dtype == torch.float32
    assert batch.labels.shape == (1438,) and batch.labels.dtype == torch.int64
    assert torch.equal(values[:, 0], values[:, 1]) and torch.equal(values[:, 0], values[:, 2])
    assert values.mean().abs() < 1e-5 and abs(values.std(correction=0) - 1) < 1e-5  # all 1,438 are measured
    pixels = stored(prepared) / 255
    assert prepared.facts["mean"] == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert prepared.facts["std"] == pytest.approx(pixels.std(axis=(0, 1, 2)))


def test_images_are_normalised_alike_whatever_the_seed(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(image_building, "MEASURED", 20)
    one, two = (prepare(config(), seed, tmp_path / f"{seed}").facts for seed in (0, 5))
    assert one == two


def test_labels_belong_to_their_pictures(digits):
    """Nearest class mean reaches about 90 % on these digits; mixed-up labels would give 10 %."""
    data, prepared = digits
    train = next(training(prepared, data, batch=1438, micro_batch=1438))
    held_out = next(iter(evaluation_batches(prepared, data, 3, micro_batch=359, rank=0, world=1)))
    flat = train.inputs["pixel_values"].flatten(1)
    means = torch.stack([flat[train.labels == digit].mean(0) for digit in range(10)])
    guesses = torch.cdist(held_out.inputs["pixel_values"].flatten(1), means).argmin(1)
    assert (guesses == held_out.labels).float().mean() > 0.8


def test_one_channel_and_another_size(tmp_path):
    pytest.importorskip("sklearn")
    data = config(channels=1, size=12, evaluation_images=50)
    prepared = prepare(data, 0, tmp_path / "data")
    assert len(prepared.facts["mean"]) == len(prepared.facts["std"]) == 1
    assert prepared.facts["evaluation"] == 50 and prepared.facts["training"] == 1747
    assert next(training(prepared, data)).inputs["pixel_values"].shape == (8, 1, 12, 12)


# --- sources -------------------------------------------------------------------------------------------------------


def test_a_folder_per_class_is_read_into_the_prepared_folder(tmp_path):
    images = pictures(20)
    for number, image in enumerate(images):
        folder = tmp_path / "photos" / ("cat" if number % 2 else "ant")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.png").write_bytes(png(image))
    prepared = prepare(config(tmp_path / "photos"), 0, tmp_path / "data")
    shutil.rmtree(tmp_path / "photos")
    again = open_prepared(tmp_path / "data")
    assert again.facts == prepared.facts and again.facts["class_names"] == ["ant", "cat"]
    assert again.facts["training"] == 16 and again.facts["evaluation"] == 4
    mine = np.concatenate([stored(again), stored(again, "evaluation")])
    assert sorted(map(bytes, mine)) == sorted(map(bytes, images))
    reader = ImageSamples(again.folder, again.facts)
    for split in ("training", "evaluation"):
        found, labels = reader.read(split, np.arange(again.facts[split]))
        numbers = [next(n for n, image in enumerate(images) if np.array_equal(image, picture)) for picture in found]
        assert labels.tolist() == [number % 2 for number in numbers]


def test_grey_levels_of_16_bits_are_those_of_8(tmp_path):
    """Pillow's own conversion makes everything above 255 white."""
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    for number in range(20):
        for name, pixels in (("deep", levels * 257), ("plain", levels.astype(np.uint8))):
            folder = tmp_path / name / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02}.png").write_bytes(png(pixels))
    deep, plain = (prepare(config(tmp_path / n, channels=1), 0, tmp_path / f"{n}-data") for n in ("deep", "plain"))
    assert deep.facts == plain.facts and np.array_equal(stored(deep), stored(plain)) and stored(deep)[0].max() == 252


def test_no_class_disappears_for_the_kind_of_its_files(tmp_path, caplog):
    kinds = ["gif", "webp", "bmp", "tiff", "jpg"]
    for number, image in enumerate(pictures(50)):
        folder = tmp_path / "photos" / kinds[number % 5]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(folder / f"{number}.{folder.name}")
    (tmp_path / "photos" / "raw").mkdir()
    (tmp_path / "photos" / "raw" / "1.heic").write_bytes(b"of a camera")
    prepared = prepare(config(tmp_path / "photos"), 0, tmp_path / "data")
    assert prepared.facts["class_names"] == sorted(kinds)
    assert "files of other kinds are passed over: 1 .heic" in caplog.text
    assert f"1 folders have nothing that is read, such as {tmp_path / 'photos' / 'raw'}" in caplog.text


@pytest.mark.parametrize("rows", ["path", "string"])
def test_a_table_names_no_files(tmp_path, rows):
    """`datasets` would read them, wherever they lie."""
    (tmp_path / "private.png").write_bytes(png(pictures(1)[0]))
    place = str(tmp_path / "private.png")
    column = [{"bytes": None, "path": place}] * 10 if rows == "path" else [place] * 10
    if rows == "path":
        column = pa.array(column, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pa.parquet.write_table(pa.table({"image": column, "label": [0, 1] * 5}), tmp_path / "table.parquet")
    with pytest.raises(UserError, match=r"table.parquet: column 'image' (holds string|has no encoded image in row 0)"):
        prepare(config(tmp_path / "table.parquet"), 0, tmp_path / "data")


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("names", [None, ["dog", "emu"]])
def test_parquet_with_images_as_bytes_or_struct_and_labels_as_numbers_or_names(tmp_path, raw, names):
    images = pictures(10)
    encoded = [png(image) if raw else {"bytes": png(image), "path": f"{n}.png"} for n, image in enumerate(images)]
    labels = [7 * (n % 2) if names is None else names[n % 2] for n in range(10)]
    for part, rows in (("train", slice(0, 6)), ("test", slice(6, 10))):
        pa.parquet.write_table(pa.table({"img": encoded[rows], "fine": labels[rows]}), tmp_path / f"{part}.parquet")
    data = config(tmp_path / "train.parquet", evaluation=str(tmp_path / "test.parquet"), column="img", label="fine")
    prepared = prepare(data, 0, tmp_path / "data")
    assert prepared.facts["class_names"] == (names or ["0", "7"])
    assert np.array_equal(stored(prepared), images[:6]) and np.array_equal(stored(prepared, "evaluation"), images[6:])
    held_out = next(iter(evaluation_batches(prepared, data, 0, micro_batch=4, rank=0, world=1)))
    assert held_out.labels.tolist() == [0, 1, 0, 1]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder with the splits of a data set, 90 images of 32x32 in two files and 20 in one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    Path("pets").mkdir()
    rows = [{"bytes": png(image), "path": f"{n}.png"} for n, image in enumerate(pictures(110, 32))]
    for name, part in {"train-0": rows[:40], "train-1": rows[40:90], "test-0": rows[90:]}.items():
        kinds = [int(row["path"].removesuffix(".png")) % 3 for row in part]
        table = pa.table({"photo": part, "kind": kinds, "note": ["x" * 99] * len(part)})
        pa.parquet.write_table(table, f"pets/{name}.parquet", row_group_size=16)
    return tmp_path


@pytest.mark.parametrize("source", ["local", "hub"])
def test_images_are_stored_once(tables, monkeypatch, source):
    """Neither `datasets`' own cache nor the folder that is being prepared holds a second copy, at any moment."""
    sizes, save = [], ImageTables.save
    content = sum(len(png(image)) for image in pictures(110, 32))

    def measured(self, *arguments):
        save(self, *arguments)
        sizes.append(size_of(tables) - size_of(tables / "pets"))

    monkeypatch.setattr(ImageTables, "save", measured)
    if source == "hub":  # `datasets` loads a folder by its name as it loads a data set of the hub
        found = HubSplit("pets", None, "train"), HubSplit("pets", None, "test")
        monkeypatch.setattr("pipeline.data.image_building.resolve", lambda data: found)
    files = {"dataset": ["pets/train-0.parquet", "pets/train-1.parquet"], "evaluation": "pets/test-0.parquet"}
    prepared = prepare(config(column="photo", label="kind", **files), 0, tables / "data")
    assert content < max(sizes) < 1.2 * content
    assert (prepared.facts["training"], prepared.facts["evaluation"]) == (90, 20)
    mine = np.concatenate([stored(prepared), stored(prepared, "evaluation")])
    assert np.array_equal(mine, np.stack(pictures(110, 32)))
    _, labels = ImageSamples(prepared.folder, prepared.facts).read("training", np.arange(90))
    assert labels.tolist() == [number % 3 for number in range(90)]


def test_stored_images_fill_several_files(tables, monkeypatch):
    monkeypatch.setattr(image_tables, "SHARD", 100_000)
    prepared = prepare(config("pets", column="photo", label="kind"), 0, tables / "data")
    assert len(list((tables / "data" / "training").glob("*.arrow"))) == 2
    mine = np.concatenate([stored(prepared), stored(prepared, "evaluation")])
    assert sorted(map(bytes, mine)) == sorted(map(bytes, pictures(110, 32)))


def test_an_image_that_is_missing_is_named_by_its_row(tables):
    table = pa.table({"photo": [png(image) for image in pictures(9)] + [None], "kind": [0, 1] * 5})
    pa.parquet.write_table(table, "pets/train-1.parquet")
    with pytest.raises(UserError) as caught:
        prepare(
            config(["pets/train-0.parquet", "pets/train-1.parquet"], column="photo", label="kind"), 0, tables / "data"
        )
    assert str(caught.value) == "pets/train-1.parquet: column 'photo' has no encoded image in row 9; put it in"


def test_the_held_out_images_are_the_same_for_every_seed(tmp_path):
    rows = [png(image) for image in pictures(30)]
    pa.parquet.write_table(pa.table({"image": rows, "label": [n % 2 for n in range(30)]}), tmp_path / "a.parquet")
    one, two = (prepare(config(tmp_path / "a.parquet"), seed, tmp_path / f"{seed}") for seed in (1, 2))
    assert np.array_equal(stored(one, "evaluation"), stored(two, "evaluation"))


def test_an_oblong_picture_is_cut_to_its_middle():
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 200
    assert (augment.fit(PIL.Image.fromarray(pixels), 8) == 200).all()


@needs_cifar
def test_cifar_parquet(tmp_path):
    """Figures from the folder's README; the mean is taken from 1,600 of the 2,000 images."""
    data = config(CIFAR / "test-00000-of-00001.parquet", size=32)
    prepared = prepare(data, 0, tmp_path / "data")
    facts = prepared.facts
    assert facts["training"] == 1600 and facts["evaluation"] == 400
    assert facts["class_names"][:3] == ["airplane", "automobile", "bird"] and facts["classes"] == 10
    assert facts["mean"] == pytest.approx([0.4943, 0.4855, 0.4527], abs=0.01)
    assert facts["std"] == pytest.approx([0.2465, 0.2424, 0.2607], abs=0.01)
    batch = next(training(prepared, data, batch=64, micro_batch=64))
    assert batch.inputs["pixel_values"].shape == (64, 3, 32, 32) and batch.labels.max() <= 9


# --- batches -------------------------------------------------------------------------------------------------------

KINDS = ["none", "shift", "crop-flip", "deit"]


def varied(data, kind):
    if kind == "deit":
        pytest.importorskip("kornia")
    return data.model_copy(update={"augment": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_ranks_and_workers_change_nothing(noise, kind):
    data, prepared = varied(noise[0], kind), noise[1]
    whole = list(islice(training(prepared, data, batch=8, micro_batch=4), 16))  # 64 samples: beyond the 48 of an epoch
    resumed = islice(training(prepared, data, batch=8, micro_batch=4, first_step=5), 6)
    assert all(same(a, b) for a, b in zip(whole[10:], resumed, strict=True))
    ranks = [islice(training(prepared, data, batch=8, micro_batch=4, rank=rank, world=2), 8) for rank in (0, 1)]
    two = (part for turn in zip(*ranks, strict=True) for part in turn)
    assert all(same(a, b) for a, b in zip(whole, two, strict=True))
    loaded = training(prepared, data.model_copy(update={"workers": 2}), batch=8, micro_batch=4)
    assert all(same(a, b) for a, b in zip(whole, islice(loaded, 16), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_an_augmentation_is_a_function_of_seed_epoch_and_row(noise, kind):
    varied(noise[0], kind)
    reader = ImageSamples(noise[1].folder, noise[1].facts, kind)

    def values(seed, epoch, rows):
        inputs, _ = reader.train(seed, np.full(len(rows), epoch), np.array(rows))
        assert inputs["pixels"].dtype == torch.uint8, "as it travels"
        return reader.finished(inputs, inputs)["pixel_values"]

    whole = values(3, 1, range(12))
    assert whole.shape == (12, 3, 32, 32) and whole.dtype == torch.float32 and whole.isfinite().all()
    assert torch.equal(values(3, 1, [9, 2]), whole[[9, 2]])
    for other in (values(3, 2, range(12)), values(4, 1, range(12))):
        assert torch.equal(other, whole) == (kind == "none")


@pytest.mark.parametrize("kind", KINDS)
def test_reading_leaves_the_generator_of_the_model_alone(noise, kind):
    data = varied(noise[0], kind)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    next(training(noise[1], data))
    list(evaluation_batches(noise[1], data, 3, micro_batch=4, rank=0, world=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_view_of_an_image_is_augmented_for_itself(noise):
    """A run without views draws what the first one does."""
    reader = ImageSamples(noise[1].folder, noise[1].facts, "crop-flip")
    rows, epochs = np.array([5, 2, 5, 5, 2]), np.ones(5, dtype=int)
    inputs, labels = reader.train(3, epochs, rows, np.array([0, 0, 1, 2, 1]))
    plain, _ = reader.train(3, epochs, rows)
    assert labels.tolist() == reader.train(3, epochs[:2], rows[:2])[1][[0, 1, 0, 0, 1]].tolist()
    assert torch.equal(inputs["pixels"][:2], plain["pixels"][:2])
    assert torch.equal(plain["pixels"][0], plain["pixels"][2]), "the same view"
    different = {image.numpy().tobytes() for image in inputs["pixels"]}
    assert len(different) == 5
    again, _ = reader.train(3, epochs[3:4], rows[3:4], np.array([2]))
    assert torch.equal(again["pixels"][0], inputs["pixels"][3]), "whatever else is read"


def test_neither_ranks_nor_workers_nor_a_resume_change_repeated_images(noise):
    """Groups of 12 views do not fit into the batch, nor into the micro-batches; mixing reads neighbours."""
    changes = {"augment": "crop-flip", "repeats": 3, "mixup": 0.8, "cutmix": 1.0}
    data, prepared = noise[0].model_copy(update=changes), noise[1]
    whole = list(islice(training(prepared, data, batch=10, micro_batch=5), 30))  # 150 samples: every image three times
    resumed = islice(training(prepared, data, batch=10, micro_batch=5, first_step=4), 6)
    assert all(same(a, b) for a, b in zip(whole[8:], resumed, strict=False))
    ranks = [islice(training(prepared, data, batch=10, micro_batch=5, rank=rank, world=2), 15) for rank in (0, 1)]
    two = [part for turn in zip(*ranks, strict=True) for part in turn]
    assert all(same(a, b) for a, b in zip(whole, two, strict=True))
    loaded = training(prepared, data.model_copy(update={"workers": 2}), batch=10, micro_batch=5)
    assert all(same(a, b) for a, b in zip(whole, islice(loaded, 30), strict=True))


def test_an_epoch_of_repeated_images_has_as_many_samples_of_fewer_images(noise):
    data, prepared = noise[0].model_copy(update={"repeats": 3, "mixup": 0.8}), noise[1]
    plain = data.model_copy(update={"mixup": 0.0})
    read = [next(training(prepared, plain, batch=48, micro_batch=48, first_step=step)) for step in range(3)]
    seen = [{image.numpy().tobytes() for image in batch.inputs["pixel_values"]} for batch in read]
    assert [len(each) for each in seen] == [16, 16, 16] and len(set.union(*seen)) == 48
    counted = Counter(image.numpy().tobytes() for batch in read for image in batch.inputs["pixel_values"])
    assert set(counted.values()) == {3}


@pytest.mark.parametrize("share", [0.5, 0.875, 0.95])
@pytest.mark.parametrize("width, height", [(500, 375), (375, 500), (40, 301), (333, 30), (64, 64), (7, 9)])
def test_the_centre_is_what_resizing_and_cropping_leave(width, height, share):
    """torchvision's Resize to a number and CenterCrop, as its documentation has them."""
    pixels = np.random.Generator(np.random.Philox(key=2)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, size = PIL.Image.fromarray(pixels), 56
    shorter = int(size / share + 0.5)
    if width <= height:
        resized = image.resize((shorter, int(shorter * height / width)), PIL.Image.Resampling.BICUBIC)
    else:
        resized = image.resize((int(shorter * width / height), shorter), PIL.Image.Resampling.BICUBIC)
    left, top = round((resized.width - size) / 2.0), round((resized.height - size) / 2.0)
    expected = np.asarray(resized)[top : top + size, left : left + size]
    assert np.array_equal(augment.fit_centre(image, size, share), expected)


def test_evaluation_images_are_cut_to_their_centre(noise):
    """Training images, the statistics and a run without the key know nothing of it."""
    data, prepared = noise[0].model_copy(update={"evaluation_crop": 0.5}), noise[1]
    images, _ = ImageSamples(prepared.folder, prepared.facts).read("evaluation", np.arange(12))
    ours, whole = (
        next(iter(evaluation_batches(prepared, each, 3, micro_batch=12, rank=0, world=1))) for each in (data, noise[0])
    )
    size, views = 32, Views(prepared.facts["mean"], prepared.facts["std"])
    for cropped, plain, image in zip(ours.inputs["pixel_values"], whole.inputs["pixel_values"], images, strict=True):
        large = image.resize((2 * size, 2 * size), PIL.Image.Resampling.BICUBIC).crop((16, 16, 48, 48))
        for found, pixels in ((cropped, large), (plain, image)):
            stacked = torch.from_numpy(np.array(pixels).transpose(2, 0, 1))[None]
            assert torch.equal(found, views.finished({"pixels": stacked}, {})[0])
    assert same(next(training(prepared, data)), next(training(prepared, noise[0])))
    assert prepare(data, 3, prepared.folder).facts == prepared.facts, "what is prepared stays"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"repeats": 2.5}, "valid integer"),
        ({"repeats": 3}, "repeats 3: without an augmentation the views of an image are the same; set augment"),
        ({"evaluation_crop": 0}, "greater than or equal to 0.1"),
        ({"evaluation_crop": 1.1}, "less than or equal to 1"),
    ],
)
def test_values_that_mean_nothing_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        config(**changes)
    assert config(repeats=3, augment="shift") and config(repeats=3, mixup=0.1), "either makes views differ"


def test_evaluation_is_never_augmented_and_covers_the_set_once(noise):
    data, prepared = varied(noise[0], "crop-flip"), noise[1]
    reader = ImageSamples(prepared.folder, prepared.facts)
    plain = reader.finished(reader.evaluate(0, np.arange(12))[0], {})
    shares = [list(evaluation_batches(prepared, data, 3, micro_batch=5, rank=rank, world=2)) for rank in (0, 1)]
    assert [[batch.valid for batch in share] for share in shares] == [[5, 2], [5, 0]]
    assert {batch.inputs["pixel_values"].shape[0] for share in shares for batch in share} == {5}
    counted = [batch.inputs["pixel_values"][: batch.valid] for turn in zip(*shares, strict=True) for batch in turn]
    assert torch.equal(torch.cat(counted), plain["pixel_values"])


# --- augmentations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_one_loader_goes_through_the_evaluation_set_again(noise, workers):
    data = noise[0].model_copy(update={"workers": workers})
    evaluation = evaluation_batches(noise[1], data, 3, micro_batch=5, rank=0, world=1)
    first = list(evaluation)
    processes = {child.pid for child in multiprocessing.active_children()}
    assert all(same(a, b) for a, b in zip(first, evaluation, strict=True))
    assert {child.pid for child in multiprocessing.active_children()} == processes and len(processes) >= workers


def viewed(image: np.ndarray, kind: str, keys: int) -> np.ndarray:
    """What each key makes of an image: levels, (keys, rows, columns, channels)."""
    size = len(image)
    drawn = [augment.drawn(PIL.Image.fromarray(image), kind, size, key) for key in range(keys)]
    inputs = {"pixels": torch.from_numpy(np.stack([pixels for pixels, _ in drawn])).permute(0, 3, 1, 2)}
    inputs |= {name: torch.from_numpy(np.stack([each[name] for _, each in drawn])) for name in drawn[0][1]}
    levels = Views([0.0] * 3, [1.0] * 3).finished(inputs, inputs) * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("side", "most"), [(4, 1), (8, 1), (32, 4)])
def test_a_shift_moves_whole_pixels_by_12_percent_of_the_side_at_most(side, most):
    image = pictures(1, side)[0] | 1  # no pixel is black
    moved = set()
    for result in viewed(image, "shift", 600):
        rows, columns = np.nonzero(result.any(axis=2))
        top, left = rows.min() or rows.max() + 1 - side, columns.min() or columns.max() + 1 - side
        expected = np.zeros_like(image)
        expected[max(top, 0) : side + min(top, 0), max(left, 0) : side + min(left, 0)] = image[
            max(-top, 0) : side + min(-top, 0), max(-left, 0) : side + min(-left, 0)
        ]
        assert np.array_equal(result, expected)
        moved.add((int(top), int(left)))
    assert moved == {(down, right) for down in range(-most, most + 1) for right in range(-most, most + 1)}


def test_crop_flip_mirrors_half_of_the_time_and_cuts_different_parts():
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 64, 3))  # brighter to the right
    results = viewed(ramp.copy(), "crop-flip", 400).astype(int)
    mirrored = [result[:, 0].mean() > result[:, -1].mean() for result in results]
    assert 160 < sum(mirrored) < 240  # four deviations of a fair coin
    spans = [abs(result[:, 0].mean() - result[:, -1].mean()) / 255 for result in results]
    # The width cut is sqrt(area * ratio), 0.24 of the side to all of it.
    assert min(spans) < 0.35 and max(spans) > 0.9


def former_view(image: PIL.Image.Image, kind: str, size: int, seed: int) -> np.ndarray:
    """As release 0.2.0 made it in the loader, image by image: levels, (size, size, channels)."""
    draws = np.random.Generator(np.random.Philox(key=seed))
    if kind == "shift":
        most = max(1, round(0.12 * size))
        top, left = (int(draw * (2 * most + 1)) for draw in draws.random(2))
        return np.pad(augment.fit(image, size), ((most,) * 2, (most,) * 2, (0, 0)))[
            top : top + size, left : left + size
        ]
    width, height = image.size
    area_draw, ratio_draw, left_draw, top_draw, mirror_draw = draws.random(5)
    area, ratio = width * height * (0.08 + area_draw * 0.92), math.exp(math.log(3 / 4) + ratio_draw * math.log(16 / 9))
    wide, high = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = left_draw * (width - wide), top_draw * (height - high)
    box = (left, top, left + wide, top + high)
    values = np.asarray(image.resize((size, size), PIL.Image.Resampling.BICUBIC, box=box))
    return values[:, ::-1] if mirror_draw < 0.5 else values


@pytest.mark.parametrize("kind", ["shift", "crop-flip"])
def test_a_run_that_was_begun_before_goes_on_with_the_same_pixels(kind):
    image = pictures(1, 32)[0]
    expected = [former_view(PIL.Image.fromarray(image), kind, 32, key) for key in range(60)]
    assert np.array_equal(viewed(image, kind, 60), np.stack(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_deit_keeps_the_shape_for_grey_and_colour(tmp_path, channels):
    pytest.importorskip("kornia")
    pictures_of_both = coloured(tmp_path / "pictures", "RGB" if channels == 3 else "L", 40)
    data = config(pictures_of_both, size=16, channels=channels, augment="deit")
    prepared = prepare(data, 3, tmp_path / "data")
    batch = next(training(prepared, data, batch=160, micro_batch=160))
    results, facts = batch.inputs["pixel_values"], prepared.facts
    assert results.shape == (160, channels, 16, 16) and results.isfinite().all()
    mean, std = (torch.tensor(facts[key]).view(-1, 1, 1) for key in ("mean", "std"))
    levels = results * std + mean
    assert levels.min() >= -1e-5 and levels.max() <= 1 + 1e-5
    erased = sum(bool((result == 0).all(dim=0).sum() >= 4) for result in results)
    assert 13 <= erased <= 67  # a quarter of 160, five deviations either side


def coloured(folder: Path, mode: str = "RGB", count: int = 12) -> Path:
    """Pictures of two classes in files of their own."""
    for number, pixels in enumerate(pictures(count)):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).convert(mode).save(place / f"{number:02d}.png")
    return folder


@pytest.mark.parametrize("mode, said", [("RGBA", True), ("LA", True), ("RGB", False), ("L", False)])
def test_an_alpha_channel_is_dropped_and_said(tmp_path, caplog, mode, said):
    folder = coloured(tmp_path / "pictures", mode)
    prepared = prepare(config(folder, size=8, channels=3), 3, tmp_path / "data")
    line = "of the 10 looked at have an alpha channel, such as "
    assert (line in caplog.text) is said
    images, _ = ImageSamples(tmp_path / "data", prepared.facts).read("training", np.arange(10))
    assert {image.mode for image in images} == {"RGB"}


def test_a_picture_that_would_fill_the_memory_is_named(tmp_path, monkeypatch):
    """One of so many pixels that Pillow calls it a bomb; here a small number of them."""
    folder = coloured(tmp_path / "pictures")
    PIL.Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a" / "large.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError) as caught:
        prepare(config(folder, size=8, channels=3, evaluation=str(coloured(tmp_path / "others"))), 3, tmp_path / "data")
    assert "large.png): cannot be decoded (Image size (4096 pixels) exceeds limit" in str(caught.value)
    assert "decompression bomb" in str(caught.value) and "\n" not in str(caught.value)
