"""When a growth can be done, and when it can be done without loss: every reason in words, decided without a tensor."""

import torch

from pipeline.growth.attention import lost_heads
from pipeline.models.architecture import Architecture, Attention, LayerStack, Space

NOT_COPIED = ("lookup", "grid", "pixels")
"""Kinds of spaces that grow by rows or pixels, of which no unit is copied."""


def impossible(source: Architecture, target: Architecture, fresh_layers: bool = False) -> list[str]:
    """Why no method can grow `source` into `target`; empty when one can. fresh_layers: layers may start afresh, and
    the others need not be enough to make them of."""
    if foreign := _foreign(source, target):
        return foreign
    if not fresh_layers and (rootless := _rootless(source, target)):
        return rootless
    shrinking = _shrinking(source, target) + _out_of_pattern(source, target)
    heads = [reason for attention in target.attentions for reason in _heads(attention, source, target)]
    return shrinking + _fixed(source, target) + ([] if shrinking else heads)


def _foreign(source: Architecture, target: Architecture) -> list[str]:
    """Why the two are not the same kind of model."""
    if source.family != target.family:
        return [
            f"the source is a '{source.family}', the target a '{target.family}'; choose a target of the source's family"
        ]
    if lacking := sorted({param.name for param in source.params} ^ {param.name for param in target.params}):
        return [
            (
                f"source and target do not have the same parameters: only one has '{lacking[0]}'; "
                "give the target the source's options"
            )
        ]
    return []


def _rootless(source: Architecture, target: Architecture) -> list[str]:
    before = {stack.name: stack for stack in source.stacks}
    return [
        f"the source has no {target.stack_prefix(stack)}layers of which {stack.layers} could be made; "
        "use lemon with depth 'random'"
        if not before[stack.name].layers
        else f"the source has {before[stack.name].layers} of the {stack.period} {target.stack_prefix(stack)}layers of "
        f"one pattern, and {stack.layers} need whole ones; use lemon with depth 'random'"
        for stack in target.stacks
        if stack.blocks and not before[stack.name].blocks and not _out_of_pattern(source, target)
    ]


def _out_of_pattern(source: Architecture, target: Architecture) -> list[str]:
    """Layers of several kinds keep their pattern: only whole ones are added (growth-math, section 6)."""
    before = {stack.name: stack for stack in source.stacks}
    return [
        reason
        for stack in target.stacks
        for reason in _broken_pattern(target.stack_prefix(stack), before[stack.name], stack)
    ]


def _broken_pattern(prefix: str, source: LayerStack, target: LayerStack) -> list[str]:
    if target.period != source.period:
        each = f"{source.period} in the source and of {target.period} in the target"
        return [f"the {prefix}layers repeat in patterns of {each}; give the target the source's"]
    beyond = (target.layers - source.layers) % source.period
    if target.layers <= source.layers or not beyond:
        return []
    fewer = target.layers - beyond
    broken = f"{source.period}, which a growth from {source.layers} to {target.layers} would break"
    way = "" if source.blocks else ", with depth 'random',"
    return [f"the {prefix}layers repeat in a pattern of {broken}; choose {fewer} or{way} {fewer + source.period}"]


def _shrinking(source: Architecture, target: Architecture) -> list[str]:
    before, after = source.sizes(), target.sizes()
    return [
        f"{name} shrinks from {before[name]} to {after[name]}; an expansion only grows"
        for name in after
        if after[name] < before[name] and not _regrouped(name, before, after)
    ]


def _regrouped(name: str, before: dict[str, int], after: dict[str, int]) -> bool:
    """Whether `name` counts query heads and there are fewer of them in more groups, which the rules of groups judge."""
    groups = f"{name.removesuffix('heads')}kv heads"
    return name.endswith("heads") and groups in after and after[groups] > before[groups]


def _fixed(source: Architecture, target: Architecture) -> list[str]:
    return [
        f"{name} changes from {source.spaces[name].size} to {space.size}; it has to stay as it is"
        for name, space in target.spaces.items()
        if space.kind == "fixed" and space.size != source.spaces[name].size and not _is_head(space, target)
    ]


def _is_head(space: Space, architecture: Architecture) -> bool:
    """A norm's space over head_dim: its size is judged with the heads."""
    return any(each.qk_norm and space.size == architecture.spaces[each.query].unit for each in architecture.attentions)


def _heads(attention: Attention, source: Architecture, target: Architecture) -> list[str]:
    before, after = source.spaces[attention.query], target.spaces[attention.query]
    groups = source.spaces[attention.key].count, target.spaces[attention.key].count
    if attention.rope and after.unit != before.unit:
        return [
            (
                f"rotary positions depend on head_dim, which changes from {before.unit} to {after.unit}; "
                f"give the target heads of {before.unit}"
            )
        ]
    if after.count % groups[1]:
        return [
            (
                f"{after.count} heads do not fall into {groups[1]} groups of keys and values; "
                f"choose a multiple of {groups[1]}"
            )
        ]
    if lost := lost_heads(attention, source, target, torch.arange(groups[1]) % groups[0]):
        return [
            (
                f"{lost} of the {before.count} query heads would occur nowhere: {after.count} heads in {groups[1]} "
                f"groups are too few for {before.count} in {groups[0]}; choose more heads or groups"
            )
        ]
    return []


def inexact(source: Architecture, target: Architecture) -> list[str]:
    """Why LEMON's rules cannot be exact where something has to give; empty when they are."""
    reasons = [reason for name, space in target.spaces.items() for reason in _space(source.spaces[name], space, target)]
    return reasons + _constant_epsilon(source, target) + _tied_decoder_without_gain(source, target)


def _constant_epsilon(source: Architecture, target: Architecture) -> list[str]:
    """A remainder changes the variance that norms see, and their epsilon has to follow it (growth-math, section 4)."""
    before, after = source.residual.size, target.residual.size
    if target.epsilon.key is not None or after % before == 0:
        return []
    return [
        (
            f"the norms' epsilon is a constant of the code of '{target.family}' ({target.epsilon.value:g}, no key of "
            f"the config), and a width from {before} to {after} needs another one; choose a multiple of {before}"
        )
    ]


def _tied_decoder_without_gain(source: Architecture, target: Architecture) -> list[str]:
    """A decoder tied to the grown token embedding reads every entry k times; the last norm's gain divides by k."""
    tied = any(param.use == "both" for param in target.params)
    grown = (
        space
        for space in target.spaces.values()
        if space.kind == "tied" and space.size > source.spaces[space.name].size
    )
    return [
        f"the decoder is tied to the token embedding, and the last norm has no gain that could make up for copies in "
        f"'{space.name}' ({source.spaces[space.name].size} to {space.size}); untie the decoder or keep the width"
        for space in grown
        if tied and not any(param.touches(space.name, "gain") for param in target.params)
    ]


def _space(source: Space, target: Space, architecture: Architecture) -> list[str]:
    if target.size % source.size == 0:
        return []
    post_ln = target.kind == "residual" and architecture.post_norm
    if target.kind == "residual" and architecture.norm_writes_stream and not post_ln:
        no_mean = "the remainder has to be the mean of what the norm gives out, and no entry of a norm's output is"
        return [
            (
                f"a norm behind the embedding writes the residual stream, which cannot grow losslessly from "
                f"{source.size} to {target.size}: {no_mean}; choose a multiple of {source.size}"
            )
        ]
    if target.kind == "inner" or post_ln:
        where = "a dense-activation-norm head" if target.kind == "inner" else "post-LN"
        return [
            (
                f"{where} cannot grow losslessly from {source.size} to {target.size}: the norm needs the mean in the "
                f"remainder, its readers need copies; choose a multiple of {source.size}"
            )
        ]
    if target.kind == "branch" and not architecture.rms:
        return [
            (
                f"a LayerNorm at the end of a branch cannot grow losslessly from {source.size} to {target.size}: it "
                f"gives out its bias where the residual stream needs the mean; choose a multiple of {source.size}"
            )
        ]
    return []


def uncancelled(source: Architecture, target: Architecture) -> list[str]:
    """Why noise in new layers cannot cancel: a norm divides what is left of it by itself."""
    before = {stack.name: stack.layers for stack in source.stacks}
    if not target.branch_ends or all(stack.layers <= before[stack.name] for stack in target.stacks):
        return []
    return [
        (
            "depth 'cancel' lets a new layer's branches end in noise that adds up to 0, and here a norm at their end "
            "would divide that 0 by the root of its epsilon; use depth 'zero', which starts the norm's gain at 0"
        )
    ]


def interpolated(source: Architecture, target: Architecture) -> list[str]:
    """What a larger image changes: no function of small images is a function of large ones."""
    return [
        f"{name} grows from {source.spaces[name].size} to {space.size} by interpolation"
        for name, space in target.spaces.items()
        if space.kind in ("grid", "pixels") and space.size != source.spaces[name].size
    ]


def deeper(source: Architecture, target: Architecture) -> list[str]:
    """Repeated layers compute something else."""
    before = {stack.name: stack.layers for stack in source.stacks}
    return [
        f"{target.stack_prefix(stack)}layers repeat from {before[stack.name]} to {stack.layers}"
        for stack in target.stacks
        if stack.layers > before[stack.name]
    ]


def begun_afresh(source: Architecture, target: Architecture) -> list[str]:
    """Layers that start afresh add something else than nothing."""
    before = {stack.name: stack.layers for stack in source.stacks}
    return [
        f"{stack.layers - before[stack.name]} of {stack.layers} {target.stack_prefix(stack)}layers start afresh"
        for stack in target.stacks
        if stack.layers > before[stack.name]
    ]


def wider(source: Architecture, target: Architecture) -> list[str]:
    """Copies without the rules for a remainder change what a norm sees."""
    before, after = source.residual.size, target.residual.size
    if after % before == 0:
        return []
    return [f"{target.residual.name} grows from {before} to {after}, no multiple: the norms see another variance"]


def width_changes(source: Architecture, target: Architecture, method: str) -> list[str]:
    """Refusals of a method that grows in depth only."""
    before, after = source.sizes(), target.sizes()
    grown = [
        f"{name} from {before[name]} to {after[name]}"
        for name in after
        if not name.endswith("layers")
        and after[name] != before[name]
        and (not name.endswith("kv heads") or source.grouped)
    ]
    if not grown:
        return []
    return [f"'{method}' grows in depth only, and the target grows {', '.join(grown)}; use lemon, fpi or aki"]


def holding(
    source: Architecture, target: Architecture, config_change: dict[str, float], moves_norm_affines: bool
) -> list[str]:
    """What the exactness of this growth rests on, in words."""
    lines = _norms(source, target, config_change)
    lines += [
        f"rotary positions: head_dim stays {target.spaces[each.query].unit}" for each in target.attentions if each.rope
    ]
    if target.grouped:
        lines.append("groups share keys and values: every query head occurs, W_O divides by how often")
    lines += [
        f"{space.name}: {space.size - source.spaces[name].size} rows appended; "
        "old outputs stay, new rows start fresh, new biases at 0"
        for name, space in target.spaces.items()
        if space.kind == "lookup" and space.size > source.spaces[name].size
    ]
    if moves_norm_affines:
        epsilon = target.epsilon.key or "epsilon"
        lines.append(f"post-LN depth: the affine moves to the new layer, exact up to O({epsilon}), measured")
    return lines


def _norms(source: Architecture, target: Architecture, config_change: dict[str, float]) -> list[str]:
    lines = []
    if (before := source.residual.size) != (after := target.residual.size):
        norm, (copies, rest) = "RMSNorm" if target.rms else "LayerNorm", divmod(after, before)
        remainder = "" if not rest else f" and {rest} zeros" if target.rms else f" and the mean {rest} times"
        changes = "".join(f"; the config's {key} becomes {value:.6g}" for key, value in config_change.items())
        lines.append(f"{norm} sees {copies} full {'copy' if copies == 1 else 'copies'}{remainder}{changes}")
    if target.post_norm:
        lines.append("post-LN: exact at whole multiples of the width")
    elif target.norm_writes_stream:
        lines.append("norm behind the embedding: exact at whole multiples of the width")
    if target.branch_ends:
        lines.append(
            "norms at the ends of branches see what the norms of the stream see; new layers start their gain at 0"
        )
    if any(space.kind == "inner" for space in target.spaces.values()):
        lines.append("dense-activation-norm head: exact at whole multiples of the width")
    return lines
