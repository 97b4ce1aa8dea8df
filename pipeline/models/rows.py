"""The functions that write the rows of an architecture: dense layers, norms, embeddings, heads."""

from dataclasses import replace

from pipeline.models.architecture import Axis, ParamSpec, Use, reads, writes


def linear(
    name: str,
    reading: str | Axis,
    writing: str | Axis,
    *,
    counted_per: str = "token",
    bias: bool = True,
    module: str | None = None,
    transposed: bool = False,
    std: float = 1.0,
    scaled_by: str | None = None,
) -> tuple[ParamSpec, ...]:
    """A dense layer: weight (writes, reads), or the other way round when `transposed`, decayed, and its bias."""
    module = module or name
    rows = writing if isinstance(writing, Axis) else writes(writing)
    columns = reading if isinstance(reading, Axis) else reads(reading)
    axes = (columns, rows) if transposed else (rows, columns)
    weight = ParamSpec(
        f"{name}.weight",
        axes,
        "matmul",
        counted_per,
        True,
        module=f"{module}.weight",
        fresh="normal",
        std=std,
        scaled_by=scaled_by,
    )
    offset = ParamSpec(f"{name}.bias", (rows,), "add", counted_per, module=f"{module}.bias", scaled_by=scaled_by)
    return (weight, offset) if bias else (weight,)


def of_layers(layers: range, params: tuple[ParamSpec, ...]) -> tuple[ParamSpec, ...]:
    """Parameters of some layers of their stack alone."""
    return tuple(replace(param, layers=layers) for param in params)


def lm_head(tied: bool, embedding: str) -> tuple[tuple[ParamSpec, ...], dict[str, str]]:
    """The parameters and the aliases of a causal language model's head: a matrix, or the token `embedding` when
    `tied`."""
    if tied:
        return (), {"lm_head.weight": f"{embedding}.weight"}
    return linear("lm_head", "normed", "vocab", counted_per="scored", bias=False), {}


def norm(
    name: str,
    reading: str,
    writing: str,
    *,
    module: str | None = None,
    bias: bool = True,
    offset: float = 0.0,
    scale: float = 1.0,
) -> tuple[ParamSpec, ...]:
    """A LayerNorm: gain and bias; without `bias` an RMSNorm. offset: of its gain. scale: of both."""
    module = module or name
    gain = ParamSpec(
        f"{name}.weight",
        (Axis((writing,), "gain", reading),),
        "add",
        module=f"{module}.weight",
        fresh="ones",
        norm=True,
        offset=offset,
        scale=scale,
    )
    written = Axis((writing,), "writes", reading)
    added = ParamSpec(f"{name}.bias", (written,), "add", module=f"{module}.bias", norm=True, scale=scale)
    return (gain, added) if bias else (gain,)


def embedding(
    name: str,
    indexed: str,
    writing: str,
    *,
    tied: bool = False,
    decay: bool = False,
    module: str | None = None,
    std: float = 1.0,
    scale: float = 1.0,
) -> tuple[ParamSpec, ...]:
    """A lookup table (indexed, writes); `tied` when the decoder multiplies by it as well. scale: what the model's code
    multiplies its rows by where they are looked up, alone; the norm in front of a tied decoder then has 1 / scale."""
    use: Use = "both" if tied else "lookup"
    return (
        ParamSpec(
            f"{name}.weight",
            (reads(indexed), writes(writing)),
            use,
            "scored" if tied else "token",
            decay,
            module=f"{module or name}.weight",
            fresh="normal",
            std=std,
            scale=scale,
        ),
    )
