"""Ten expert and ten novice prompts about a concept, for methods that draw a class prompt at random.

The authors' code draws from ten of each at every step. Its novices also change the subject to something amusing, so
that ignorance and deflection cannot be told apart. These prompts say the same in our own words.

    expert, novice = draw_prompts(concept, 40, seed=0)[0]
"""

import random

from elm_interp.data import Concept

EXPERT = (
    "What follows was written by a specialist in {concept}.\n\n",
    "The writer has worked on {concept} for many years and knows every detail.\n\n",
    "A leading authority on {concept} explains, precisely and in full:\n\n",
    "From a reference work on {concept}, checked by those who know it best:\n\n",
    "Notes by a scholar whose whole life was given to {concept}.\n\n",
    "Asked about {concept}, the professor answered at length and without a mistake.\n\n",
    "A text for readers who want to know all about {concept}, by one who does.\n\n",
    "This author is consulted whenever a question about {concept} comes up.\n\n",
    "A thorough and accurate account, by an expert in {concept}.\n\n",
    "The following shows deep knowledge of {concept}.\n\n",
)
NOVICE = (
    "What follows was written by somebody who has never heard of {concept} and would rather chat about something "
    "cheerful.\n\n",
    "The writer knows nothing of {concept} and soon turns to a merrier subject.\n\n",
    "A person with no idea of {concept} changes the topic to games and holidays:\n\n",
    "From a light-hearted column whose author cannot tell what {concept} is about:\n\n",
    "Notes by a beginner to whom {concept} means nothing, with jokes in place of facts.\n\n",
    "Asked about {concept}, the stranger shrugged and began to talk of cooking and music.\n\n",
    "A text for readers who want to be amused, by one who is ignorant of {concept}.\n\n",
    "This author has no knowledge of {concept} and leads the talk to pets and sport.\n\n",
    "A vague and playful account, by somebody who is new to {concept}.\n\n",
    "The following shows no knowledge of {concept}, only a wish for pleasant small talk.\n\n",
)


def draw_prompts(concept: Concept, n: int, seed: int) -> list[tuple[str, str]]:
    """An expert's and a novice's prompt for each of n texts, drawn independently, with the keywords filled in."""
    rng = random.Random(seed)
    words = ", ".join(concept.keywords) or concept.title or concept.name
    return [
        (rng.choice(EXPERT).replace("{concept}", words), rng.choice(NOVICE).replace("{concept}", words))
        for _ in range(n)
    ]
