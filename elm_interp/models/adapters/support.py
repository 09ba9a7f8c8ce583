"""Which adapters of peft can be switched off to the bit: the others are refused, with the reason and what fixes it.

Refused are LoRAs that are made for another base than the one on disk (their start was subtracted from it, or layers
were replicated), and those whose action depends on more than their own matrices.
"""

from peft import LoraConfig

from elm_interp.errors import AdapterError

STARTS = ("eva", "gaussian", "mica", "orthogonal")
"""Initial weights, by name, that leave the base as it is."""
_OTHER_BASE = ("pissa", "olora", "corda", "lora_ga")
_CONVERT = (
    "convert it to a plain LoRA where it was trained, with peft's "
    "model.save_pretrained(folder, path_initial_model_for_weight_conversion=initial_folder), or merge it "
    "(merge_and_unload, save_pretrained) and give that model"
)
_MERGE = "merge it where it was trained (merge_and_unload, save_pretrained) and give that model"
_ACTS_ELSEWHERE = {
    "alora_invocation_tokens": "acts after its invocation tokens alone",
    "arrow_config": "routes between other adapters",
    "use_bdlora": "is split into blocks",
    "kasa_config": "is scaled by singular values of the base",
    "monteclora_config": "samples its weights",
    "use_qalora": "pools its inputs",
}


def check_support(config: LoraConfig, folder: object) -> None:
    """Refuse an adapter that would change the base, or act otherwise than its matrices say.

    Raises:
        AdapterError: names the setting and what fixes it.
    """
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower() not in STARTS:
        known = start.lower().startswith(_OTHER_BASE)
        raise AdapterError(
            f"the adapter in {folder} was trained from the start init_lora_weights={start!r}, which changes the base's "
            f"own weights; expected an adapter of the unchanged base. {_CONVERT if known else _MERGE}."
        )
    if config.layer_replication:
        raise AdapterError(
            f"the adapter in {folder} replicates layers of its base (layer_replication={config.layer_replication}), so "
            f"the model without it is another one; expected an adapter of the base as it is. {_MERGE}."
        )
    for name, what in _ACTS_ELSEWHERE.items():
        if getattr(config, name, None):
            raise AdapterError(f"the adapter in {folder} {what} ({name}); only plain LoRA and DoRA are run. {_MERGE}.")


def check_trainable(config: LoraConfig) -> None:
    """Refuse the config of a new adapter that trains more than LoRA matrices.

    Raises:
        AdapterError: names the settings.
    """
    given = {
        "bias": config.bias if config.bias != "none" else None,
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
    }
    if asked := [f"{name}={value!r}" for name, value in given.items() if value]:
        raise AdapterError(
            f"a new adapter with {', '.join(asked)} would train weights of the base itself; expected LoRA matrices "
            "alone. Leave these settings out, or train with peft and load the folder."
        )
    check_support(config, "this configuration")
