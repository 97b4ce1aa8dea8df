"""LEMON: lossless expansion of width and depth (Wang et al., ICLR 2024, arXiv:2310.07999).

| space             | E: how the large model holds it       | R: how it reads it                    |
| residual stream   | k copies, remainder the mean          | full copies share                     |
| norm's output     | k copies, remainder zero              | full copies share, remainder free     |
| heads, MLP units  | circular copies of whole units        | copies share equally                  |
"""

from pipeline.axes import Space, Table
from pipeline.growth import maps
from pipeline.growth.maps import SpaceMap

LOSSLESS = True


def choose(source: Table, target: Table) -> dict[str, SpaceMap]:
    """The maps of every space. Call `refusals` first."""
    return {name: _map(source.spaces[name], space) for name, space in target.spaces.items()}


def _map(source: Space, target: Space) -> SpaceMap:
    if source.size == target.size:
        return maps.same(source.size)
    if target.kind in ("heads", "mlp"):
        return maps.circular(source.size, target.size, target.unit)
    return {"stream": maps.stream, "normed": maps.normed, "tied": maps.tied, "inner": maps.circular}[target.kind](source.size, target.size)


def refusals(source: Table, target: Table) -> list[str]:
    """Why this growth cannot be lossless; empty when it can."""
    if source.family != target.family:
        return [f"the source is a '{source.family}', the target a '{target.family}'; choose a target of the source's family"]
    reasons = [reason for name in target.spaces for reason in _space(source.spaces[name], target.spaces[name], target)]
    if target.layers < source.layers:
        reasons.append(f"layers shrink from {source.layers} to {target.layers}; an expansion only grows")
    if target.layers > source.layers and any(target.post_norm(space) for space in target.spaces.values()):
        reasons.append(
            f"'{target.family}' normalises the stream after each branch, so that a layer which adds nothing still changes it "
            f"(LN(h) != h); keep {source.layers} layers"
        )
    return reasons


def _space(source: Space, target: Space, table: Table) -> list[str]:
    grows = target.size != source.size
    if target.size < source.size:
        return [] if target.follows else [f"{target.name} shrinks from {source.size} to {target.size}; an expansion only grows"]
    if grows and target.kind == "fixed":
        return [f"{target.name} changes from {source.size} to {target.size}; it has to stay as it is"]
    if target.unit != source.unit:
        return [f"head_dim changes from {source.unit} to {target.unit}; give the target {target.size // source.unit} heads of {source.unit}"]
    if grows and target.size % source.size and (target.kind == "inner" or table.post_norm(target)):
        where = "a dense-activation-norm head" if target.kind == "inner" else "post-LN"
        return [
            f"{where} cannot grow losslessly from {source.size} to {target.size}: the norm needs the mean in the remainder, "
            f"its readers need copies; choose a multiple of {source.size}"
        ]
    return []
