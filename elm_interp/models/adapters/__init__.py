"""LoRA adapters: their configs, their files, the slots on a loaded base, and differences of models as adapters."""

from elm_interp.models.adapters.files import read_adapter
from elm_interp.models.adapters.lora import lora_config
from elm_interp.models.adapters.merged import write_difference
from elm_interp.models.adapters.slots import AdapterSlots

__all__ = ["AdapterSlots", "lora_config", "read_adapter", "write_difference"]
