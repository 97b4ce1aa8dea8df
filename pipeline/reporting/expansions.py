"""The section on expansions: how each was made, whether it kept the function, and whether its copies will separate."""

from pipeline.reporting.markup import Content, Markup, Number, element, section, table
from pipeline.reporting.units import decimal, scientific

LOSSY = "lossy, as declared"
SEPARATE = 1e-6
"""A measure of symmetry up to this is rounding: such copies stay copies."""


def continuity(run: dict) -> Markup:
    """What became of the losses, of the function, and of the symmetry; nothing where nothing was expanded."""
    each = run["continuity"]
    if not each:
        return Markup("")
    parts = [*_made(each), *_losses(run), *_verification(each), *_symmetry(each)]
    return section("Continuity: was the expansion lossless?", *parts)


def _made(each: list[dict]) -> list[Markup]:
    """How each was made; of a lossy one also why, as its plan declared before it was made."""
    rows: list[list[Content]] = [
        [one["stage"], *(one[key] or "–" for key in ("source", "method")), _declared(one["lossless"]),
         one["optimizer_state"] or "–"]
        for one in each
    ]
    reasons = [
        element("p", f"'{one['stage']}' is {LOSSY}: {'; '.join(one['lossy'])}.", kind="note")
        for one in each if one["lossy"]
    ]
    return [table(["expansion", "from", "method", "declared", "optimizer state"], rows), *reasons]


def _declared(lossless: bool | None) -> str:
    return "–" if lossless is None else "lossless" if lossless else "lossy"


def _losses(run: dict) -> list[Markup]:
    """The last loss of each source beside the first one of what was expanded from it."""
    rows: list[list[Content]] = [
        [f"{one['source']} → {start['stage']}", Number(decimal(one["source_loss"])), Number(decimal(start["loss"])),
         Number(_signed(start["difference"]))]
        for one in run["continuity"] for start in one["started"]
    ]
    if not rows:
        return []
    heads = ["expansion", "source, last loss", "expanded, loss at step 0", "difference"]
    parts = [element("h4", "Evaluation loss across the expansion"), table(heads, rows)]
    if run["unigram_entropy"] is not None:
        scale = "For scale, the unigram entropy, what a model reaches that knows only how often each token occurs:"
        parts.append(element("p", f"{scale} {decimal(run['unigram_entropy'])} nats.", kind="note"))
    return parts


def _signed(difference: float | None) -> str:
    if difference is None:
        return "–"
    text = scientific(difference) if abs(difference) < 1e-4 else decimal(difference, 6)
    return f"+{text}" if difference > 0 else text


def _verification(each: list[dict]) -> list[Markup]:
    """Relative differences beside their gates, and what goes with them."""
    rows = [row for one in each for row in ([_verdict(one, verdict) for verdict in one["verification"]] + _stored(one))]
    if not rows:
        return []
    heads = ["expansion", "run in", "relative difference of outputs", "gate", "result"]
    notes = [element("p", text, kind="note") for one in each for text in _notes(one)]
    return [element("h4", "Verification"), table(heads, rows), *notes]


def _verdict(one: dict, verdict: dict) -> list[Content]:
    """No gate holds what is declared lossy: its difference is a measurement, not a failure."""
    difference = Number(scientific(verdict["difference"]))
    if one["lossless"] is False:
        return [one["stage"], verdict["precision"], difference, Number("–"), LOSSY]
    words = element("span", "within the gate", kind="good"), element("span", "misses the gate", kind="bad")
    known = "–" if verdict["within"] is None else words[not verdict["within"]]
    return [one["stage"], verdict["precision"], difference, Number(scientific(verdict["gate"])), known]


def _stored(one: dict) -> list[list[Content]]:
    if one["stored"] is None:
        return []
    difference = Number(scientific(one["stored"]))
    return [[one["stage"], "float64, as stored", difference, Number("–"), "rounding of the stored dtype"]]


def _notes(one: dict) -> list[str]:
    notes = []
    if one["tolerance"]:
        notes.append(f"The gates of '{one['stage']}' hold {scientific(one['tolerance'])} for post-LN depth, "
                     f"which is exact up to what vanishes with the norms' epsilon.")
    if one["loss"]:
        before, after = map(decimal, one["loss"])
        notes.append(f"The vocabulary of '{one['stage']}' grew: old logits stay, but new ones enter the softmax; "
                     f"on the probe the loss goes from {before} to {after}.")
    if one["drift"] and one["lossless"]:
        drift = scientific(max(one["drift"]))
        notes.append(f"'{one['stage']}': the residual stream drifts by {drift} at most behind any layer.")
    return notes


def _symmetry(each: list[dict]) -> list[Markup]:
    """How far the gradients of copies differ, a column for each space that holds copies."""
    measured = [one for one in each if one["symmetry"]]
    spaces = list(dict.fromkeys(space for one in measured for space in one["symmetry"]))
    if not spaces:
        return []
    rows: list[list[Content]] = [
        [one["stage"], *(_measure(one["symmetry"].get(space)) for space in spaces)] for one in measured
    ]
    words = "The smallest difference between the gradients of a unit and its copy, relative to the larger."
    note = element("p", f"{words} 0: such copies stay copies.", kind="note")
    return [element("h4", "Symmetry"), table(["expansion", *spaces], rows), note]


def _measure(measure: float | None) -> Number:
    if measure is None or measure > SEPARATE:
        return Number(decimal(measure, 3) if measure is None or measure >= 0.01 else scientific(measure))
    return Number("0", str(measure))
