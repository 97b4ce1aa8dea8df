"""Parquet files of images, local or of the hub: the labels are read first, then the images of each split go straight
into its folder. Besides the files themselves there is one copy, in the prepared folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from datasets.arrow_writer import ArrowWriter

from pipeline.errors import UserError, one_line

ROW = "__row__"
"""The column that stands for the images: the number of the row, over all files."""
IMAGES_AT_ONCE = 64
SHARD = 500_000_000
"""Bytes of a file of stored images, about."""
STORED = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
UNREADABLE = (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class ImageTables:
    """Parquet files that are one table. column: that of the images. features: of the columns, where something other
    than the files says them."""

    paths: list[Path]
    column: str
    features: datasets.Features | None = None

    def rows(self, label: str, cache: Path) -> datasets.Dataset:
        """The column `label` and ROW. cache: where `datasets` keeps them, for a while. Raises UserError."""
        for path in self.paths:
            self._require_images(path)
        features = datasets.Features({label: self.features[label]}) if self.features else None
        try:
            rows = datasets.Dataset.from_parquet(
                [str(path) for path in self.paths], features=features, columns=[label], cache_dir=str(cache)
            )
        except UNREADABLE as error:
            raise _unreadable(self.paths[0], error) from error
        return rows.add_column(ROW, np.arange(len(rows)))

    def _require_images(self, path: Path) -> None:
        """Raises UserError for a table that names files, which may lie anywhere, instead of encoded images."""
        stored = pyarrow.parquet.read_schema(path).field(self.column).type
        held = pa.types.is_struct(stored) and stored.get_field_index("bytes") >= 0
        content = stored.field("bytes").type if held else stored
        if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
            raise UserError(f"{path}: column '{self.column}' holds {stored}, no encoded images; set data.column")

    def save(self, rows: np.ndarray, labels: np.ndarray, folder: Path) -> None:
        """Store the images `rows` (ascending) and their `labels` as `datasets` reads them. Raises UserError."""
        folder.mkdir()
        files = _Shards(folder)
        first = done = 0
        for images in self._images():
            until = int(np.searchsorted(rows, first + len(images)))
            wanted = pa.array(rows[done:until] - first)
            files.write(images.take(wanted), labels[done:until])
            first, done = first + len(images), until
        files.close()

    def _images(self) -> Iterator[pa.Array]:
        """All images in order, IMAGES_AT_ONCE at a time."""
        for path in self.paths:
            row = 0
            try:
                with pyarrow.parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches(IMAGES_AT_ONCE, columns=[self.column]):
                        images = datasets.Image().cast_storage(batch.column(0))
                        self._require_all(path, row, images)
                        row += len(images)
                        yield images
            except UNREADABLE as error:
                raise _unreadable(path, error) from error

    def _require_all(self, path: Path, first: int, images: pa.Array) -> None:
        content = pyarrow.compute.struct_field(images, "bytes")
        if content.null_count:
            row = first + content.is_null().to_pylist().index(True)
            raise UserError(f"{path}: column '{self.column}' has no encoded image in row {row}; put it in")


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path}: cannot read the images ({one_line(error.__cause__ or error)})")


class _Shards:
    """The files of a split: a new one every SHARD bytes, the list of them at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: list[str] = []
        self.size = 0
        self._open()

    def _open(self) -> None:
        self.names.append(f"data-{len(self.names):05d}.arrow")
        self.writer, self.size = ArrowWriter(features=STORED, path=str(self.folder / self.names[-1])), 0

    def _end(self) -> None:
        self.writer.finalize()
        self.writer.close()

    def write(self, images: pa.Array, labels: np.ndarray) -> None:
        if self.size > SHARD:
            self._end()
            self._open()
        if len(images):
            self.writer.write_table(pa.table({"image": images, "label": pa.array(labels)}, schema=STORED.arrow_schema))
        self.size += images.nbytes

    def close(self) -> None:
        """Write what `datasets.load_from_disk` asks for besides."""
        self._end()
        state: dict[str, object] = {
            "_data_files": [{"filename": name} for name in self.names],
            "_fingerprint": "0" * 16,
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2))
        datasets.DatasetInfo(features=STORED).write_to_directory(str(self.folder))
