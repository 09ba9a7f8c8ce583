"""The methods of erasure by name, and how each preset is trained.

objective, training = preset("rmu", "paper")
"""

from elm_interp.erase.elm import ELM
from elm_interp.erase.repnoise import RepNoise
from elm_interp.erase.rmu import RMU
from elm_interp.erase.whp import WHP
from elm_interp.errors import unknown
from elm_interp.training.trainer import Training

Method = ELM | RMU | RepNoise | WHP
METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (ELM, RMU, RepNoise, WHP)}
UNCLIPPED = 1e9
"""A norm that no gradient reaches, for methods whose authors clip nothing."""

_AS_PUBLISHED = {"schedule": "constant", "warmup": 0, "weight_decay": 0.01, "max_grad_norm": UNCLIPPED}
TRAINING: dict[str, dict[str, dict]] = {
    "rmu": {
        # the authors' log for Zephyr: 150 batches of 4; AdamW's default decay
        "paper": {**_AS_PUBLISHED, "steps": 150, "forget_batch": 4, "retain_batch": 4, "lr": 5e-5},
        "smollm2-135m": {"steps": 100, "forget_batch": 2, "retain_batch": 2, "lr": 1e-3, "save_every": 25},
        "organism": {"steps": 300, "forget_batch": 8, "retain_batch": 8, "lr": 5e-3, "save_every": 50},
    },
    "repnoise": {
        # 10,000 pairs once, 8 a step; cosine after a tenth of warm-up; no decay
        "paper": {"steps": 1250, "forget_batch": 8, "lr": 2e-5, "warmup": 125, "max_grad_norm": UNCLIPPED},
        "smollm2-135m": {"steps": 100, "forget_batch": 4, "lr": 5e-4, "save_every": 25},
        "organism": {"steps": 250, "forget_batch": 16, "lr": 1e-3, "save_every": 50},
    },
    "whp": {
        # 8 texts × 16 accumulated; the effect is there by 120 to 150 steps
        "paper": {**_AS_PUBLISHED, "steps": 150, "forget_batch": 128, "lr": 1e-6},
        "smollm2-135m": {"steps": 100, "forget_batch": 4, "lr": 1e-3, "save_every": 25},
        "organism": {"steps": 200, "forget_batch": 8, "lr": 2e-3, "save_every": 50},
    },
}
"""What each preset's training sets beside the defaults; ELM's are `Training.preset`'s."""


def method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UnknownNameError: no such method; with the closest.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def preset(method_name: str, name: str) -> tuple[Method, Training]:
    """A method's preset and the training that goes with it.

    Raises:
        UnknownNameError: no such method or preset; with the closest.
    """
    objective = method(method_name).preset(name)
    if method_name in TRAINING:
        return objective, Training(**TRAINING[method_name][name])
    return objective, Training.preset(name)
