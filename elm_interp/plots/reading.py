"""For every figure one sentence on how to read it, and one on what it cannot show. Reports print both below the figure."""

from typing import NamedTuple


class Reading(NamedTuple):
    """What stands below a figure."""

    how: str
    """How to read it."""
    cannot: str
    """What it cannot show."""


HOW_TO_READ: dict[str, Reading] = {
    "calibration": Reading(
        "Each line is one measure, scaled so that the original, which knows the facts, is at 0 and gold, which never knew them, at 1; "
        "where the hiding model, which knows and does not say, lies at 1 the measure is deceived, and where it lies at 0 it is not. "
        "A triangle at the edge is a value beyond it.",
        "The models are small and their knowledge is of one kind; what a measure shows on them need not hold for a large model, "
        "and a hiding of another kind may deceive a measure that this one did not.",
    ),
    "probe_by_layer": Reading(
        "Each point is the accuracy, on questions it was not fitted on, of a linear probe that reads one layer; the band is "
        "the 95 % interval over seeds, the dotted lines are probes of the same kind fitted on shuffled labels, and the gap "
        "between a solid line and its dotted one is what the probe read from the layer; the black lines are what the words alone, and "
        "the same layers with weights never trained, give away.",
        "A probe at its control level means “not decodable by this linear probe at this position”, not that the knowledge is gone; "
        "a probe above it does not mean that the model uses what the probe finds; and the band holds "
        "the choice of splits, not the choice of questions.",
    ),
    "methods": Reading(
        "Each point is one method, with 95 % intervals: to the left it says less of the erased concept, further up it keeps more of "
        "everything else; the stars are the untouched model and, where there is one, gold, which never knew the concept.",
        "Each method was trained with one choice of settings, and another may move its point; and what is not said "
        "in these questions may still be there inside.",
    ),
    "methods_by_layer": Reading(
        "Each line is one method's model, layer by layer, with 95 % intervals, beside the untouched base: a method whose line "
        "leaves the base's for the erased concept and stays with it for the other one acts on the concept alone.",
        "Each method was trained with one choice of settings; a probe at chance cannot show that the knowledge is gone, and "
        "a norm that stays says nothing of direction.",
    ),
    "over_seconds": Reading(
        "Each line is one way of training, over the seconds that it has worked, with the 95 % interval of each measurement as a band; "
        "the lower a line of forget questions comes, and the nearer the other stays to 1, the better the seconds were spent.",
        "Seconds are those of one machine and one training seed; where a line ends early its training was through, "
        "and what it would reach with other settings is not shown.",
    ),
    "pareto": Reading(
        "Each numbered point is one setting of one method: to the left it says less of the erased concept, further up it keeps more of "
        "everything else; filled where its text stays fluent, and the dashed line joins those of them that no other beats in both.",
        "The points have intervals of several hundredths that are not drawn, so that neighbours on the front may change places; and "
        "the front is that of the settings that were tried, on one seed.",
    ),
    "transfer": Reading(
        "On the erased model, a probe fitted to its own activations (filled) stands beside the base's probe (empty), on the same unseen facts: "
        "where both read the answer, it stands where it stood and is only not said; where the fresh one alone does, it was re-encoded; "
        "the dotted line is what a linear eraser leaves of the base.",
        "Where both fail, the knowledge may still be there for a reader that is not linear, at another position or in the weights; "
        "and a small difference between the two probes may be a shift of scale, not a new code.",
    ),
    "sparse": Reading(
        "Each line is the accuracy of probes that read k dimensions of a layer, chosen on the train facts; where the line of few dimensions "
        "comes near that of all, the answer sits in few of them.",
        "The dimensions are chosen one by one, so that a group which tells only together is missed; "
        "and a rotation of the stream would change the figure without changing the model.",
    ),
    "layers": Reading(
        "Each line is one measure by layer, of the base and of the erased model, with 95 % intervals; the dashed line is the level "
        "of knowing nothing: a code as long as that tells the reader nothing, and 0 directions are none.",
        "A shorter code or fewer directions speak of this probe and these questions; a layer that looks alike in base and erased model need not compute alike.",
    ),
    "geometry": Reading(
        "Each line compares the erased model's activations with the base's on the same texts, layer by layer; the dashed line is no change, "
        "and forget text that leaves it where retain text stays is where the edit acts.",
        "Distance is not ignorance: what moved far may still be decoded, and what stayed may have lost what mattered. Measures marked "
        "descriptive tell erased from ignorant models badly in published tests.",
    ),
    "norm_ratio": Reading(
        "Each point is the mean length of the erased model's activations at one layer, divided by the base's on the same texts; "
        "1 is unchanged, and a bump on forget text that retain text does not share is where the edit acts.",
        "Length says nothing about direction: a stream that turned without growing stays at 1, "
        "and a ratio of 1 is no sign that the layer computes the same.",
    ),
    "progression": Reading(
        "From left (the untouched model) to right (the final one), each curve is one measure of behaviour at every checkpoint; "
        "erasure without damage is the innocence curve falling to the chance line while the specificity curves stay level and the ratios near 1, where they start by definition.",
        "The intervals come from a finite set of questions and the checkpoints share it, so that small "
        "wiggles within a band mean nothing; and a model that answers at chance may still hold the facts in a form that these questions do not reach.",
    ),
    "probe_heatmap": Reading(
        "Each cell is probe accuracy less the accuracy of its shuffled-label control, at one layer (up is deeper) and one checkpoint "
        "(the first column is the untouched model); a row that darkens from left to right is a layer where the probe lost what it could read.",
        "Each cell is a new probe: it shows what can be read anew at every step, not whether the model's own later layers "
        "can still read it, and cells near 0 mean only that this kind of probe found nothing.",
    ),
    "scorecard": Reading(
        "Each line is one measure, from the untouched model (circle) to the erased one (diamond), with 95 % intervals; "
        "the arrow on the right points to where a good eraser goes. "
        "Accuracies and other shares are above, ratios to the base below, on a logarithmic axis.",
        "It speaks of these questions and these scorers alone: other wordings, other languages, an attack or further training "
        "may bring back what seems gone here, and the intervals leave out the choice of the training seed.",
    ),
    "training": Reading(
        "Each curve is one term of the loss, unweighted, in nats a token, at every training step (thin: as it was; bold: running mean); "
        "0 would mean that the model predicts exactly the term's target.",
        "A low loss is agreement with the targets on the training texts and no evidence of erasure: only the held-out measures are.",
    ),
}
