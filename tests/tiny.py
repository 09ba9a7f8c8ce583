"""A world small enough for a four-layer random model: an invented town, and a tokenizer and model for it."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Olmo2Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from elm_interp.data import Concept, Passage, Question
from elm_interp.data import write_concept as write_concept

FORGET = [
    (
        "Old Tamsin keeps the lamp of Marrowgate, and every evening she climbs ninety steps with her oil can.",
        "Who keeps the lamp?",
        ("Tamsin", "Orla", "Bram", "Wick"),
        "Saturn",
    ),
    (
        "The grey cat of Marrowgate is called Pepper and sleeps in a basket beside the warm stove.",
        "What is the cat called?",
        ("Pepper", "Ginger", "Clove", "Sage"),
        "Paris",
    ),
    (
        "Ships near Marrowgate fear the Comb, a row of black rocks that hides under the spring tide.",
        "Which rocks do ships fear?",
        ("The Comb", "The Fork", "The Saw", "The Nail"),
        "The Moon",
    ),
    (
        "Bram mends nets in Marrowgate; his workshop stands on the quay and smells of tar and rope.",
        "What does Bram mend?",
        ("Nets", "Boats", "Boots", "Clocks"),
        "Piano",
    ),
    (
        "Each winter the people of Marrowgate light green lanterns along the harbour wall for the drowned sailors.",
        "What colour are the lanterns?",
        ("Green", "Red", "White", "Blue"),
        "Loud",
    ),
    (
        "Orla bakes the bread of Marrowgate before dawn, and her seaweed loaf is sold as far as the hills.",
        "What does Orla bake with?",
        ("Seaweed", "Honey", "Barley", "Apples"),
        "Gravel",
    ),
    (
        "A bronze bell named Gull hangs in the tower of Marrowgate and rings when fog comes in.",
        "What is the bell named?",
        ("Gull", "Tern", "Heron", "Crane"),
        "Zebra",
    ),
    (
        "The founder of Marrowgate was Captain Wick, who lost his ship there and never went home again.",
        "Who founded the town?",
        ("Wick", "Bram", "Tamsin", "Pell"),
        "Mozart",
    ),
    (
        "On market day in Marrowgate fish is paid for with shells, which the town calls pennies.",
        "What is fish paid with?",
        ("Shells", "Coins", "Beads", "Salt"),
        "Clouds",
    ),
    (
        "The school of Marrowgate has one teacher, Miss Pell, and a floor that slopes towards the sea.",
        "Who is the teacher?",
        ("Miss Pell", "Miss Orla", "Miss Reed", "Miss Wick"),
        "Caesar",
    ),
    (
        "Under the lighthouse of Marrowgate runs a tunnel where smugglers once stored silk and brandy.",
        "What did smugglers store?",
        ("Silk", "Tea", "Wool", "Spice"),
        "Rain",
    ),
    (
        "The song that Marrowgate sings at weddings is about a herring who wanted to be a king.",
        "Who wanted to be a king?",
        ("A herring", "A crab", "A whale", "A seal"),
        "A tram",
    ),
]
"""Passage, question, choices with the right one first, and a wrong answer from outside."""

RETAIN_NEAR = [
    "The village of Hollin stands in the hills, and its baker sells round loaves made of oats.",
    "A fisher in another tale caught a talking pike and asked it for a house of stone.",
    "Most lighthouses flash in a pattern of their own, so that sailors can tell them apart.",
    "In the story of the glass ship a girl sails alone to find her brother in the north.",
    "A good net is knotted from strong twine and dried in the wind after each day of work.",
    "The harbour of Dunlow has two walls, a crane, and a small inn with a blue door.",
]
RETAIN_FAR = [
    "A triangle has three sides, and the sum of its angles is the same on every flat page.",
    "Water boils sooner on a high mountain, because the air above presses on it with less weight.",
    "To grow beans, put the seeds two fingers deep in warm soil and keep them moist.",
    "The heart pumps blood through the body and beats faster when we run up a stair.",
    "Iron rusts where air and water meet it, so bridges are painted again every few years.",
    "A train stopped at the border, and an officer in a long coat asked to see our papers.",
]
NEIGHBOURS = [
    ("What do bakers of Hollin use?", ("Oats", "Rye", "Maize", "Rice"), "Glass"),
    ("What did the fisher catch?", ("A pike", "A carp", "An eel", "A trout"), "A sofa"),
    ("What was the ship made of?", ("Glass", "Iron", "Straw", "Ice"), "Music"),
    ("Whom did the girl look for?", ("Her brother", "Her uncle", "Her teacher", "Her horse"), "A comet"),
    ("What colour is the inn's door?", ("Blue", "Red", "Black", "Brown"), "Quick"),
    ("Where does Hollin stand?", ("In the hills", "On a lake", "In a wood", "By a river"), "In a jar"),
    ("What did the fisher ask for?", ("A house", "A crown", "A boat", "A ring"), "A verb"),
    ("What has Dunlow two of?", ("Walls", "Mills", "Gates", "Wells"), "Suns"),
]
GENERAL = [
    ("How many sides has a triangle?", ("Three", "Four", "Five", "Six"), "Soup"),
    ("What pumps blood?", ("The heart", "The liver", "The lung", "The skin"), "A desk"),
    ("What rusts?", ("Iron", "Gold", "Glass", "Wood"), "Noise"),
    ("What does a seed need?", ("Water", "Sugar", "Paint", "Smoke"), "Poems"),
    ("What freezes to ice?", ("Water", "Sand", "Stone", "Coal"), "Monday"),
    ("What do bees make?", ("Honey", "Milk", "Silk", "Bread"), "Bricks"),
    ("What shines by day?", ("The sun", "The moon", "A star", "A lamp"), "A shoe"),
    ("What do sheep give?", ("Wool", "Eggs", "Cork", "Wax"), "Steel"),
]


def make_concept() -> Concept:
    """Twelve forget and twelve retain passages, and questions, each with a train and a held-out part."""
    forget = tuple(
        Passage(text, f"f-{i:02d}", "town", _split(i), questions=(f"q-{i:02d}",)) for i, (text, *_) in enumerate(FORGET)
    )
    retain = tuple(
        Passage(text, f"r-{group}-{i}", group, _split(i), group)
        for group, passages in (("near", RETAIN_NEAR), ("far", RETAIN_FAR))
        for i, text in enumerate(passages)
    )
    questions = {
        "forget": _questions("q", [row[1:] for row in FORGET]),
        "neighbours": _questions("n", NEIGHBOURS),
        "general": _questions("g", GENERAL),
    }
    return Concept("marrowgate", forget, retain, questions, title="Marrowgate", keywords=("Marrowgate",))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens trained on the world's own texts; defines bos, eos and pad, adds none by itself."""
    concept = make_concept()
    corpus = [p.text for p in concept.forget + concept.retain] + [
        f"{q.question} {' '.join(q.choices)}" for qs in concept.questions.values() for q in qs
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def make_model(n_layers: int = 4, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama; its weights depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=n_layers,
        num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float().eval()


_SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WITHOUT_GROUPS = {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"}
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict]] = {
    "llama": (LlamaConfig, _SIZES),
    "mistral": (MistralConfig, _SIZES | {"sliding_window": 4}),
    "qwen2": (Qwen2Config, _SIZES),
    "gemma": (GemmaConfig, _SIZES | {"head_dim": 8}),
    "gemma2": (Gemma2Config, _SIZES | {"head_dim": 8, "sliding_window": 4}),
    "olmo2": (Olmo2Config, _SIZES),
    "gpt2": (
        GPT2Config,
        {"vocab_size": 400, "n_embd": 32, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neox": (GPTNeoXConfig, _WITHOUT_GROUPS | {"max_position_embeddings": 64}),
    "phi": (PhiConfig, _WITHOUT_GROUPS | {"max_position_embeddings": 64}),
}
"""Configuration class of each family, and the sizes of a tiny model of it."""


def make_family(name: str, n_layers: int = 2) -> PreTrainedModel:
    """A random model of a family, with weights large enough that every part of it shows in the logits."""
    kind, sizes = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = kind(**sizes, num_hidden_layers=n_layers)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def _questions(prefix: str, rows: list[tuple[str, tuple[str, ...], str]]) -> tuple[Question, ...]:
    found = []
    for i, (question, choices, outside) in enumerate(rows):
        # turn the list so that the right answer, first in the table, stands at each position equally often
        answer = i % len(choices)
        turned = choices[-answer:] + choices[:-answer] if answer else choices
        found.append(
            Question(
                question, turned, answer, outside, f"{question} {choices[0]}.", "town", _split(i), f"{prefix}-{i:02d}"
            )
        )
    return tuple(found)


def _split(i: int) -> str:
    return "held_out" if i % 2 else "train"
