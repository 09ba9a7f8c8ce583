"""LoRA adapters: their configs, their files, the slots on a loaded base, and differences of models as adapters."""

from elm_interp.models.adapters.files import adapter_folder, first_adapted_block, read_adapter
from elm_interp.models.adapters.lora import WholeWeights, lora_config
from elm_interp.models.adapters.merged import write_difference
from elm_interp.models.adapters.slots import AdapterSlots

__all__ = [
    "AdapterSlots",
    "WholeWeights",
    "adapter_folder",
    "first_adapted_block",
    "lora_config",
    "read_adapter",
    "write_difference",
]
