"""What a run trains on: text in packed blocks, or images with classes."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.limits import MOST_UNITS
from pipeline.records.strict import Strict


class TokenizerChoice(Strict):
    """`sentencepiece` learns its pieces from the training text; `wordpiece` reads a `vocab.txt`; `huggingface` loads a
    folder or a hub name."""

    kind: Literal["sentencepiece", "wordpiece", "huggingface"] = "sentencepiece"
    vocab_size: int = Field(default=4096, ge=64, le=MOST_UNITS, description="sentencepiece only: pieces to learn")
    path: str | None = None

    @model_validator(mode="after")
    def _needs_path(self) -> Self:
        if self.kind != "sentencepiece" and not self.path:
            raise ValueError(f"tokenizer.path: a {self.kind} tokenizer needs a path")
        return self


Evaluated = Literal["all", "validation", "test"]
"""Of the evaluation samples: see data/held_out.py."""


def predicted(mask: float, block: int) -> int:
    """Positions that a masked model predicts of a block: a fraction of those between [CLS] and [SEP]."""
    return max(1, round(mask * (block - 2)))


class TextData(Strict):
    """Text in packed blocks, of which a masked model predicts hidden tokens, a causal one every next token."""

    repeats: ClassVar[int] = 1

    kind: Literal["text"]
    dataset: str | list[str] = Field("embedded", description="embedded, a hub name, or local files/folders/globs")
    subset: str | None = Field(None, description="configuration of a hub data set, e.g. 20231101.en")
    evaluation: str | list[str] | None = Field(
        default=None, description="held-out files, or a hub split; None: cut from the data"
    )
    column: str = "text"
    tokenizer: TokenizerChoice = TokenizerChoice()
    block: int = Field(128, ge=8, le=MOST_UNITS, description="tokens per block, [CLS] and [SEP] included")
    mask: float = Field(0.15, gt=0, lt=1, description="fraction of a block that a masked model predicts")
    evaluation_blocks: int = Field(256, ge=1)
    evaluate: Evaluated = Field(
        "all", description="of the evaluation samples: all, or the half to choose by (validation) or to claim on (test)"
    )
    cross_document: bool = Field(True, description="whether tokens attend to the other documents of their block")
    workers: int = Field(0, ge=0, le=256, description="loader processes per rank")

    @property
    def scored(self) -> int:
        """Predicted positions per block: always the same number, so that shapes are fixed."""
        return predicted(self.mask, self.block)


Augmentation = Literal["none", "shift", "crop-flip", "deit"]
"""Of training images: see data/augment.py."""


MOST_REPEATS = 64
"""Hoffer et al. (arXiv:1901.09335) have up to 40."""


class ImageData(Strict):
    """Image classification."""

    kind: Literal["images"]
    dataset: str | list[str] = Field("embedded", description="embedded, a hub name, parquet files, or image folders")
    subset: str | None = None
    evaluation: str | list[str] | None = Field(
        default=None, description="held-out files, or a hub split; None: cut from the data"
    )
    column: str = "image"
    label: str = "label"
    size: int = Field(8, ge=1, le=4096, description="side of the square image the model sees, pixels")
    channels: Literal[1, 3] = 3
    augment: Augmentation = "none"
    mixup: float = Field(0.0, ge=0, le=100, description="alpha of mixup, 0: off; DeiT has 0.8")
    cutmix: float = Field(0.0, ge=0, le=100, description="alpha of cutmix, 0: off; DeiT has 1.0")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that all classes have; DeiT has 0.1")
    repeats: int = Field(
        1,
        ge=1,
        le=MOST_REPEATS,
        description="views of an image, each augmented for itself, near one another; DeiT has 3",
    )
    evaluation_crop: float = Field(
        1.0,
        ge=0.1,
        le=1,
        description="side of the centre that an evaluation image keeps, as a share of its shorter side; DeiT has 0.875",
    )
    evaluation_images: int = Field(
        2048, ge=1, description="at most; at most a fifth of the data where they are cut from it"
    )
    evaluate: Evaluated = Field(
        "all", description="of the evaluation samples: all, or the half to choose by (validation) or to claim on (test)"
    )
    workers: int = Field(0, ge=0, le=256)

    @model_validator(mode="after")
    def _sharpness_has_neighbours(self) -> Self:
        if self.augment == "deit" and self.size < 3:
            raise ValueError(
                f"size {self.size}: an operation of augment 'deit' looks at 3 x 3 pixels; choose 3 or more"
            )
        return self

    @model_validator(mode="after")
    def _repeats_differ(self) -> Self:
        if self.repeats > 1 and self.augment == "none" and not (self.mixup or self.cutmix):
            raise ValueError(
                f"repeats {self.repeats}: without an augmentation the views of an image are the same; set augment"
            )
        return self


READ_LATER = {
    "workers",
    "evaluate",
    "augment",
    "cross_document",
    "mixup",
    "cutmix",
    "label_smoothing",
    "repeats",
    "evaluation_crop",
}
"""Keys that change how samples are read, not what is stored. (Nor does the seed of a run, but for text with the masks
of earlier releases.)"""
Data = Annotated[TextData | ImageData, Field(discriminator="kind")]
