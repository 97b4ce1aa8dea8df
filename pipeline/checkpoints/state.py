"""A model's state: names, tensors that are read lazily, optimizer slots, provenance.

Every reader of a checkpoint gives a `State`, every writer takes one, the growth engine maps one to another.
Tensor names are published names, or those of the files where a layout's reader gave it.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.checkpoints.tensors import LazyTensor
from pipeline.errors import UserError
from pipeline.optim import optimizers
from pipeline.optim.optimizers import OptimizerSpec
from pipeline.records.stage_facts import NEW_ENTRIES

Value = TypeVar("Value")
OF_THE_ENGINE = frozenset(
    {
        *("skipped_steps", "global_steps", "global_samples", "ds_config", "ds_version"),
        *("num_experts", "ds_autoep_layers", "universal_checkpoint_info", "sparse_tensor_module_names"),
    }
)
"""What DeepSpeed's engine makes anew with every save; whatever else lies beside it is the training script's."""
OURS = frozenset({NEW_ENTRIES})
"""What a training of this pipeline keeps there of its optimizer's state, with which it goes along or ends."""
SHOWN = 5
"""Names of tensors in one remark."""


@dataclass(frozen=True)
class Group:
    """One optimizer group: parameter names in flat order, and its hyper-parameters (lr, weight_decay, …)."""

    names: tuple[str, ...]
    hyper: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A checkpoint's content.

    tensors: every parameter (tied ones once, under their owner's name). frozen: those that no optimizer group has.
    buffers: what the module keeps beside parameters. slots: optimizer state by slot name (`exp_avg`, …) and parameter.
    step: how many optimizer steps were taken (DeepSpeed's `global_steps`). steps: the count that the optimizer itself
    keeps for each parameter; empty for optimizers without one. scalars: what else it keeps for each that is one number
    (NAdam's `mu_product`, …), by its name and parameter. config: the content of the model's config.json.
    aliases: tied name -> owner. provenance: where it came from and the FLOPs spent on it so far (or "unknown").
    engine: what the engine and the script keep beside tensors (schedule of rates, counters, client state), by their
    keys in DeepSpeed's model_states file. scaling: the same of the optimizer's file (the loss scale, …). sub_group: how
    many elements stage 3 lets one flat tensor have (sub_group_size); None: DeepSpeed's default.
    left_behind: what the files hold beside the model (the pooler of a masked language model, …), by their names.
    unread: what else they hold and no layout carries, in words.
    decided_by_files: the keys of the model's config that its files decide, each with what to know of that.
    misread: of a result, what transformers 4 makes otherwise of its config, and its own code in less than float32, in
    words.
    unwrapped: what wrappers the names or the file had that were taken off, in words; empty for plain ones.
    """

    tensors: dict[str, LazyTensor]
    config: dict[str, Any] | None = None
    slots: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    step: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    scalars: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    buffers: dict[str, LazyTensor] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    scaling: dict[str, Any] = field(default_factory=dict)
    sub_group: int | None = None
    left_behind: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    decided_by_files: dict[str, str] = field(default_factory=dict)
    misread: tuple[str, ...] = ()
    unwrapped: str = ""

    def only(self, names: Collection[str]) -> "State":
        """The state of these parameters: no tensor, slot, step or group speaks of another one."""

        def kept(entries: dict[str, Value]) -> dict[str, Value]:
            return {name: entry for name, entry in entries.items() if name in names}

        groups = (Group(tuple(name for name in group.names if name in names), group.hyper) for group in self.groups)
        return replace(
            self,
            tensors=kept(self.tensors),
            frozen=tuple(name for name in self.frozen if name in names),
            slots={slot: kept(entries) for slot, entries in self.slots.items()},
            steps=kept(self.steps),
            scalars={key: kept(values) for key, values in self.scalars.items()},
            groups=tuple(group for group in groups if group.names),
            aliases={alias: owner for alias, owner in self.aliases.items() if owner in names},
        )

    def renamed(self, names: dict[str, str]) -> "State":
        """The same state under other names; a name not in `names` stays."""

        def rename(entries: dict[str, Value]) -> dict[str, Value]:
            return {names.get(name, name): entry for name, entry in entries.items()}

        return replace(
            self,
            tensors=rename(self.tensors),
            frozen=tuple(names.get(name, name) for name in self.frozen),
            slots={slot: rename(entries) for slot, entries in self.slots.items()},
            steps=rename(self.steps),
            scalars={key: rename(values) for key, values in self.scalars.items()},
            groups=tuple(Group(tuple(names.get(n, n) for n in g.names), g.hyper) for g in self.groups),
            aliases={names.get(a, a): names.get(o, o) for a, o in self.aliases.items()},
        )

    def require_coherent(self, place: Path) -> None:
        """Raises UserError where groups, slots or tied names speak of weights that the checkpoint at `place` does not
        hold, or that have another size, and where a parameter is in two groups, or twice in one."""
        if absent := [name for group in self.groups for name in group.names if not self._holds(name)]:
            raise UserError(
                f"{place}: an optimizer group has '{absent[0]}', of which there are no weights; a file is missing"
            )
        counted = Counter(name for group in self.groups for name in group.names)
        if twice := [name for name, count in counted.items() if count > 1]:
            raise UserError(f"{place}: '{twice[0]}' is in optimizer groups twice; the files do not belong together")
        if lost := [alias for alias, owner in self.aliases.items() if not self._holds(owner)]:
            raise UserError(
                f"{place}: '{lost[0]}' is tied to '{self.aliases[lost[0]]}', of which there are no weights; "
                "a file is missing"
            )
        for slot, tensors in self.slots.items() if self.known_optimizer else ():
            for name, tensor in tensors.items():
                self._require_fitting(place, slot, name, tensor)

    def _holds(self, name: object) -> bool:
        """Whether a name, which a file says and which may be anything, is that of a parameter."""
        return isinstance(name, str) and name in self.tensors

    def _require_fitting(self, place: Path, slot: str, name: str, tensor: LazyTensor) -> None:
        weights = self.tensors.get(name)
        if weights is None or weights.numel != tensor.numel:
            raise UserError(
                f"{place}: {slot} of '{name}' has shape {tensor.shape}, its weights "
                f"{weights.shape if weights else 'are missing'}; the files do not belong together"
            )

    @property
    def counted(self) -> float | None:
        """The steps that the optimizer itself has counted, for the parameter of which it has counted most; None where
        it keeps no count."""
        return max(self.steps.values(), default=None)

    def without_optimizer(self) -> "State":
        """The weights alone."""
        unread = (*self.unread, *self.besides())
        return replace(self, slots={}, step=0, steps={}, scalars={}, groups=(), engine={}, scaling={}, unread=unread)

    def remarks(self) -> list[str]:
        """What the files hold and this state does not, and what it holds otherwise, in words."""
        lines = list(self.decided_by_files.values())
        if self.left_behind:
            listed = ", ".join(self.left_behind[:SHOWN]) + (", …" if len(self.left_behind) > SHOWN else "")
            lines.append(
                f"{len(self.left_behind)} tensors of the source are no part of its model and left behind: {listed}"
            )
        return [*lines, *self._begun_anew(), *self.unread, *self.misread]

    def _begun_anew(self) -> Iterator[str]:
        """What a known optimizer that has made steps keeps of a parameter, and the files do not, in words."""
        spec = self.known_optimizer if self._filled_slots or any(self.steps.values()) else None
        for slot in spec.slots if spec else ():
            held = self.slots.get(slot.name, {})
            keeping = (group for group in self.groups if slot in spec.slots_in(group.hyper)) if spec else ()
            if lacking := [name for group in keeping for name in group.names if name not in held]:
                yield (
                    f"optimizer state '{slot.name}' of {len(lacking)} parameters ('{lacking[0]}', …) is not there, "
                    "though the optimizer has made steps; it begins with zeros"
                )

    def of_the_script(self) -> list[str]:
        """In words what the training script keeps in the checkpoint (client state, the schedule of rates), for results
        that have no place for it."""
        names = self.script_keys()
        return [f"what the training script keeps is left behind: {', '.join(names)}"] if names else []

    def script_keys(self) -> list[str]:
        """The keys under which it keeps it."""
        return [str(key) for key, value in self.engine.items() if value is not None and key not in OF_THE_ENGINE | OURS]

    def of_the_buffers(self) -> list[str]:
        """The same of buffers."""
        return [f"buffers are left behind: {', '.join(self.buffers)}"] if self.buffers else []

    def of_the_optimizer(self) -> list[str]:
        """The same of the optimizer's state, and of what is kept with it."""
        if not self.groups:
            return []
        counts = {key: self.engine.get(key) for key in ("skipped_steps", "global_samples")}
        counted = [f"{key} {value}" for key, value in counts.items() if isinstance(value, int) and value]
        counted = [*([f"step {self.step}"] if self.step or self.steps else []), *counted]
        scaling = (key for key, value in self.scaling.items() if value is not None and value is not False)
        kept = [*self._filled_slots, *self.scalars, *counted, *scaling]
        return [f"the optimizer state is left behind: {', '.join([*kept, 'hyper-parameters'])}"]

    def besides(self) -> list[str]:
        """All of this, for a result that holds weights alone."""
        return [*self.of_the_script(), *self.of_the_buffers(), *self.of_the_optimizer()]

    def all_left_behind(self) -> list[str]:
        """For the manifest of such a result: tensors by name, and in words what else it does not hold."""
        return [*self.left_behind, *self.unread, *self.besides()]

    def optimizer(self) -> OptimizerSpec:
        """The optimizer that left this state. Raises UserError, naming the slots, for one that is not registered."""
        spec = optimizers.require(self._filled_slots, self._hyper)
        for group in self.groups:
            if surplus := self._surplus(spec, group):
                raise UserError(
                    f"the group of '{group.names[0]}' keeps '{surplus[0]}', which {spec.kind} does not keep there; "
                    "that state can be resharded, not grown or trained on"
                )
        return spec

    def stored_slots(self, group: Group) -> tuple[list[str], bool]:
        """The slots that optimizer files hold for every parameter of a group, and whether they hold its step: those of
        a known optimizer, which are fresh where they are missing; of any other those that are there, which may be
        others in every group, and before the first step none. Raises UserError that names a slot which is not
        there for every parameter of the group in its shape: nothing is invented."""
        damped = any(hyper.get("dampening") for hyper in self._hyper)  # such a momentum does not start from zeros
        if (spec := self.known_optimizer) and (self._filled_slots or not damped):
            return [slot.name for slot in spec.slots_in(group.hyper)], spec.counts_steps_in(group.hyper)
        held = self.slots_of(group)
        for slot, name in ((slot, name) for slot in held for name in group.names):
            tensor, weights = self.slots[slot].get(name), self.tensors[name]
            if tensor is None or tensor.numel != weights.numel:
                found = "missing" if tensor is None else f"of shape {tensor.shape}"
                raise UserError(
                    f"optimizer state '{slot}' of '{name}' is {found}, its weights are of shape {weights.shape}; "
                    "only state in their shape is carried: take the weights alone (--format huggingface)"
                )
        return held, any(name in self.steps for name in group.names)

    def slots_of(self, group: Group) -> list[str]:
        """The slots that every parameter of a group should have: of an optimizer that is known those that it keeps
        there, as far as any are there; of an unknown one those that any of the parameters has, for it may keep others
        in every group, and all that there are where none has any."""
        if spec := self.known_optimizer:
            return [slot.name for slot in spec.slots_in(group.hyper) if slot.name in self._filled_slots]
        own = [slot for slot in self._filled_slots if any(name in self.slots[slot] for name in group.names)]
        return own or self._filled_slots

    @property
    def known_optimizer(self) -> OptimizerSpec | None:
        """The same; None for one that is not registered, or where a group keeps what such a one does not keep there."""
        spec = optimizers.recognise(self._filled_slots, self._hyper)
        return None if spec and any(self._surplus(spec, group) for group in self.groups) else spec

    def _surplus(self, spec: OptimizerSpec, group: Group) -> list[str]:
        """The slots that parameters of a group have and `spec` does not keep there."""
        own = {slot.name for slot in spec.slots_in(group.hyper)}
        others = [slot for slot in self._filled_slots if slot not in own]
        return [slot for slot in others if any(name in self.slots[slot] for name in group.names)]

    @property
    def _filled_slots(self) -> list[str]:
        return [slot for slot, entries in self.slots.items() if entries]

    @property
    def _hyper(self) -> list[dict[str, Any]]:
        return [group.hyper for group in self.groups]
