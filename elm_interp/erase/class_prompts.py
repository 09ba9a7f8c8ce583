"""Ten expert and ten novice prompts about a concept, for methods that draw a class prompt at random; and sentences that
lead away from it, which fluency text begins with (appendix E of the paper).

The authors' code draws from ten of each at every step. Its novices also change the subject to something amusing, so
that ignorance and deflection cannot be told apart. The prompts of class_prompts.json (a list for each key, "expert",
"novice" and "bridge") say the same in our own words.

    expert, novice = draw_prompts(concept, 40, seed=0)[0]
"""

import random
from pathlib import Path

from elm_interp.data import Concept
from elm_interp.files import read_json

_read = read_json(Path(__file__).with_name("class_prompts.json"))
EXPERT, NOVICE, BRIDGES = tuple(_read["expert"]), tuple(_read["novice"]), tuple(_read["bridge"])


def draw_prompts(concept: Concept, n: int, seed: int) -> list[tuple[str, str]]:
    """An expert's and a novice's prompt for each of n texts, drawn independently, with the keywords filled in."""
    rng = random.Random(seed)
    words = ", ".join(concept.keywords) or concept.title or concept.name
    return [
        (rng.choice(EXPERT).replace("{concept}", words), rng.choice(NOVICE).replace("{concept}", words))
        for _ in range(n)
    ]
