"""Names as wrappers leave them (DataParallel, torch.compile, FSDP, PEFT), and the names of the model in them."""

from collections.abc import Collection

LEADING = ("module.", "base_model.model.")
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def unwrapped(stored: Collection[str]) -> dict[str, str]:
    """Stored name -> name inside the wrappers, for every stored name. Where two would become one, all stay."""
    names = {name: _inside(name) for name in stored}
    return names if len(set(names.values())) == len(names) else {name: name for name in stored}


def _inside(name: str) -> str:
    for wrapper in ANYWHERE:
        name = name.replace(wrapper, "")
    while wrapper := next((each for each in LEADING if name.startswith(each)), None):
        name = name.removeprefix(wrapper)
    return name


def found(stored: Collection[str]) -> list[str]:
    """The wrappers that the names show."""
    leading = [wrapper for wrapper in LEADING if any(name.startswith(wrapper) for name in stored)]
    return leading + [wrapper for wrapper in ANYWHERE if any(wrapper in name for name in stored)]
