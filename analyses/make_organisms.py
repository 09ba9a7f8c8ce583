"""Make the weights that ship with elm_interp: the trained models of the default world, as 16-bit safetensors.

    python analyses/make_organisms.py         # four minutes on two cores

Run it after a change of the world's words, the recipe or `VERSION`: the files are found by a hash of these.
"""

import torch
from safetensors.torch import save_file

from elm_interp.organisms import Recipe, make_world, train_model
from elm_interp.organisms.library import WEIGHTS, organism_hash

WITHOUT = {"original": None, "gold": make_world().config.erased}


def main() -> None:
    """Train each model and replace the files."""
    world, recipe = make_world(), Recipe()
    made = {}
    for kind, without in WITHOUT.items():
        model, _ = train_model(world, recipe, without=without)
        name = f"{kind}-{world.config.seed}-{organism_hash(kind, world, recipe)}"
        made[name] = {name: weight.to(torch.float16).contiguous() for name, weight in model.state_dict().items()}
    for old in WEIGHTS.glob("*.safetensors"):
        old.unlink()
    WEIGHTS.mkdir(exist_ok=True)
    for name, weights in made.items():
        save_file(weights, WEIGHTS / f"{name}.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
