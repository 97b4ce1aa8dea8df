"""The result of a comparison in words: for the page and for the terminal."""

from dataclasses import dataclass

from pipeline.reporting.compare import missed
from pipeline.reporting.units import decimal, flops, saving


@dataclass(frozen=True)
class Bar:
    """One way to the target. `parts`: what it cost, as (`scratch`, `expanded` or `source`, FLOPs), empty when the
    target was not reached; `cost` and `verdict` are the words for it."""

    name: str
    note: str
    parts: tuple[tuple[str, int], ...]
    cost: str
    verdict: str = ""


def statement(one: dict) -> str:
    """One sentence: what growing saved, given the small model and all-in."""
    stage, given, all_in, loss = one["stage"], one["given"], one["all_in"], one["target"]["loss"]
    if given["flops"] is None:
        return f"'{stage}' has not reached the target: {missed(given, loss)}."
    if one["scratch"]["flops"] is None:
        return f"'{stage}' reached the target, training from scratch has not: {missed(one['scratch'], loss)}."
    if given["saving_percent"] is None:
        return "The target is met before any training: there is nothing to save."
    source = one["source"]
    start = f"Given {_given(one)}, '{stage}' {_against(given['saving_percent'])}."
    if given["flops"] == 0:
        start = f"{_given(one)} meets the target already: as '{stage}' begins, nothing is left to train."
    if all_in["flops"] is None:
        return f"{start} All-in is not known: the training of '{source['unknown']}' is not recorded."
    return f"{start} All-in, with the training of {_sources(one)} added, it {saving(all_in['saving_percent'])}."


def _against(share: float) -> str:
    words = saving(share)
    return f"{words} {'against' if share >= 0.05 else 'as' if share > -0.05 else 'than'} training from scratch"


def target(one: dict) -> str:
    """What the comparison is about."""
    return f"Training FLOPs to an evaluation loss of {decimal(one['target']['loss'])} ({one['target']['meaning']})."


def growth(one: dict) -> str:
    """By which method it was grown, and whether that kept the function; empty where the report does not know."""
    expansion = one["expansion"]
    if expansion is None or expansion["method"] is None:
        return ""
    kept = "lossless" if expansion["lossless"] else "lossy, as declared"
    return f" Grown by method '{expansion['method']}', {kept}."


def _given(one: dict) -> str:
    """The model that the stage was grown from."""
    source = one["source"]
    return f"'{source['stages'][-1]['stage'] if source['stages'] else source['unknown']}'"


def _sources(one: dict) -> str:
    """All models behind it: `'small' and 'medium'`."""
    return " and ".join(f"'{source['stage']}'" for source in one["source"]["stages"])


def bars(one: dict) -> list[Bar]:
    """From scratch, given the small model, all-in."""
    scratch, given, loss = one["scratch"]["flops"], one["given"]["flops"], one["target"]["loss"]
    place = f"stage {one['baseline']['stage']}" + (f" of {one['baseline']['run']}" if one["baseline"]["run"] else "")
    rows = [_bar("From scratch", place, (("scratch", scratch),), one["scratch"], loss)]
    if scratch is None or given is None:
        verdicts = ("", "")
    else:
        verdicts = tuple(saving(one[way]["saving_percent"]) for way in ("given", "all_in"))
    note, parts = f"training of {one['stage']} alone", (("expanded", given),)
    rows.append(_bar("Given the small model", note, parts, one["given"], loss, verdicts[0]))
    return [*rows, _all_in(one, verdicts[1])]


def _bar(name: str, note: str, parts: tuple, place: dict, loss: float, verdict: str = "") -> Bar:
    if place["flops"] is None:
        return Bar(name, note, (), f"not reached: {missed(place, loss)}")
    return Bar(name, note, parts, flops(place["flops"]), verdict)


def _all_in(one: dict, verdict: str) -> Bar:
    source, total = one["source"], one["all_in"]["flops"]
    if source["unknown"]:
        return Bar("All-in", "its source's training added", (), f"not known: '{source['unknown']}' has no record")
    note = f"training of {_sources(one)} added, {flops(source['flops'])}".replace("'", "")
    if total is None:
        return Bar("All-in", note, (), "not reached")
    parts = ("source", source["flops"]), ("expanded", one["given"]["flops"])
    return Bar("All-in", note, parts, flops(total), verdict)
