"""Back ends: the same numbers through torch, nnsight and TransformerLens, and nothing left behind by any."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from elm_interp.errors import BackendError, UnknownNameError
from elm_interp.models import HookedLM, load_model
from elm_interp.models.backends import TorchBackend
from elm_interp.models.backends import backend as declared_backend
from elm_interp.models.backends.torch import count_hooks
from elm_interp.models.batch import real_tokens
from elm_interp.models.generation import generate
from elm_interp.registry import BACKENDS as BACKENDS_DECLARED

pytest.importorskip("nnsight")
pytest.importorskip("transformer_lens")

ROWS = [[5, 6, 7, 8, 9, 10], [7, 8], [11, 12, 13, 14]]
SITES = ["embed", "resid_pre", "pattern", "z", "attn_out", "post", "mlp_out", "resid_post"]
BACKENDS = ["torch", "nnsight", "transformer_lens"]
EDITED = ["embed", *(f"blocks.0.hook_{name}" for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"))]
EDITED += ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_z", "blocks.1.mlp.hook_post"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture(params=BACKENDS)
def lm(request, tiny_model_folder) -> HookedLM:
    return load_model(tiny_model_folder, dtype="float32", device="cpu", backend=request.param)


def save_adapter(model, tokenizer, folder: Path, seed: int) -> Path:
    lm = HookedLM(copy.deepcopy(model), tokenizer)
    parameters = lm.adapters.attach(lm.lora(range(lm.n_layers), rank=2, alpha=4))
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    lm.adapters.save(folder)
    return folder


def read(lm: HookedLM, rows=ROWS, side="right") -> dict[str, torch.Tensor]:
    batch = lm.pad(rows, side=side)
    logits = lm.logits(batch, positions="all") * real_tokens(batch.attention_mask)[..., None]
    return {**lm.run_with_cache(batch, sites=SITES, positions="all"), "logits": logits}


def read_singly(lm: HookedLM) -> dict[str, torch.Tensor]:
    singles = [read(lm, [row]) for row in ROWS]
    whole = {}
    for key, longest in singles[0].items():
        whole[key] = torch.zeros(len(ROWS), *longest.shape[1:])
        for row, single in enumerate(singles):
            shape = single[key].shape[1:]
            whole[key][(row, *(slice(n) for n in shape))] = single[key][0]
    return whole


def difference(a, b) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_parity_of_every_site_and_state(family, tokenizer, tmp_path, capsys):
    model = tiny.make_family(family)
    a, b = (save_adapter(model, tokenizer, tmp_path / str(seed), seed) for seed in (1, 2))
    expected, gaps = {}, {}
    for backend in BACKENDS:
        lm = HookedLM(copy.deepcopy(model), tokenizer, backend=backend)
        for state in ("base", "on", "off", "swapped", "merged"):
            if state in ("on", "swapped"):
                lm.adapters.load(a if state == "on" else b)
            elif state == "off":
                lm.adapters.off()
            seen = HookedLM(lm.adapters.merged(), tokenizer, backend=backend) if state == "merged" else lm
            found = {"batched": read(seen), "left pad": read(seen, side="left"), "single": read_singly(seen)}
            reference = expected.setdefault(state, found["batched"])
            for way, values in found.items():
                gaps[backend, state, way] = difference(values, reference)
    with capsys.disabled():
        worst = {backend: max(gap for key, gap in gaps.items() if key[0] == backend) for backend in BACKENDS}
        sys.stdout.write(f"\nmaximum difference, {family}: {', '.join(f'{k} {gap:.1e}' for k, gap in worst.items())} ")
    assert max(gaps.values()) <= 1e-4, {key: gap for key, gap in gaps.items() if gap > 1e-4}
    assert difference(expected["base"], expected["off"]) <= 1e-6
    assert difference(expected["swapped"], expected["merged"]) <= 1e-4
    assert difference(expected["on"], expected["off"]) > 0.1
    assert difference(expected["on"], expected["swapped"]) > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("site", EDITED)
def test_parity_of_edits(family, site, tokenizer):
    model = tiny.make_family(family)
    changed = []
    for backend in BACKENDS:
        lm = HookedLM(model, tokenizer, backend=backend)
        batch = lm.pad(ROWS)
        before = lm.logits(batch)
        with lm.hooks({site: lambda x: 0.5 * x}), lm.hooks({site: lambda x: x.add_(0.1)}):
            changed.append(lm.logits(batch))
            seen = lm.run_with_cache(batch, sites=site, positions="all")
            changed.append(lm.hidden(batch)[0])
        assert (changed[0] - before).abs().max() > 1e-3
        torch.testing.assert_close(lm.logits(batch), before)
        torch.testing.assert_close(lm.run_with_cache(batch, sites=site)[site].shape[0], len(ROWS))
        assert site in seen
    for i, value in enumerate(changed):
        torch.testing.assert_close(value, changed[i % 2], atol=1e-4, rtol=1e-4)


def test_heads_are_edited_apart(lm):
    batch = lm.pad([[5, 6, 7]])
    heads = lm.blocks[0].self_attn.config.num_attention_heads

    def only_head_one(z):
        assert z.shape == (1, 3, heads, lm.d_model // heads)
        return z * torch.nn.functional.one_hot(torch.tensor(1), heads)[:, None]

    with lm.hooks({"blocks.0.attn.hook_z": only_head_one}):
        z = lm.run_with_cache(batch, sites="z", layers=0)["z"][0, 0]
    assert z[1].abs().min() > 0
    assert torch.count_nonzero(z[[0, 2, 3]]) == 0


def state_of(lm: HookedLM):
    tokenizer = lm.tokenizer
    return {
        "hooks": count_hooks(lm.model),
        "forwards": sum("forward" in vars(module) for module in lm.model.modules()),
        "kinds": [type(module) for module in lm.model.modules()],
        "attention": lm.model.config._attn_implementation,
        "training": lm.model.training,
        "tokenizer": (tokenizer.padding_side, tokenizer.special_tokens_map, tokenizer.backend_tokenizer.to_str()),
    }


def test_nothing_is_left_behind(lm, tokenizer, tiny_model_folder, tmp_path):
    adapter = save_adapter(lm.model, tokenizer, tmp_path / "given", 1)
    lm.adapters.load(adapter)
    before, weights = state_of(lm), {k: v.clone() for k, v in lm.model.state_dict().items()}
    batch = lm.tokenize(["Old Tamsin keeps the lamp", "A bell"])
    expected = lm.logits(batch)

    def broken(_):
        raise RuntimeError("inside")

    read(lm)
    generate(lm, ["Old Tamsin"], new_tokens=3)
    for site in ("blocks.1.hook_mlp_out", "blocks.1.attn.hook_pattern"):
        with pytest.raises(RuntimeError, match="inside"), lm.hooks({site: broken}):
            lm.logits(batch)
    with pytest.raises(ValueError, match="outside row"):
        lm.run_with_cache(batch, sites=["pattern", "resid_post"], positions=99)
    lm.as_transformer_lens(), lm.as_nnsight()
    assert state_of(lm) == before
    after = lm.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    torch.testing.assert_close(lm.logits(batch), expected, rtol=0, atol=0)
    lm.adapters.save(tmp_path / "saved")
    fresh = load_model(tiny_model_folder, adapter=tmp_path / "saved", dtype="float32", device="cpu")
    torch.testing.assert_close(fresh.logits(batch), expected, atol=1e-4, rtol=1e-4)


def test_later_layers_never_run(request, tiny_model_folder, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    ran, forward = [], LlamaMLP.forward

    def counted(self, x):
        ran.append(self)
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    for backend in BACKENDS:
        lm = load_model(tiny_model_folder, dtype="float32", device="cpu", backend=backend)
        lm.run_with_cache(lm.pad([[5, 6]]), sites="z", layers=2)
        ran.clear()
        with lm.hooks({"blocks.3.hook_resid_pre": torch.zeros_like}):
            lm.run_with_cache(lm.pad([[5, 6]]), sites="z", layers=2)
        assert len(ran) == 2, backend


def test_what_is_trained_shows_at_once_and_gradients_are_the_same(tokenizer):
    for family in ("llama", "gpt_neox"):
        gradients = []
        for backend in BACKENDS:
            lm = HookedLM(tiny.make_family(family).requires_grad_(False), tokenizer, backend=backend)
            batch = lm.pad(ROWS)
            base = lm.logits(batch)
            parameters = lm.adapters.attach(lm.lora([0, 1], rank=2, alpha=4))
            torch.testing.assert_close(lm.logits(batch), base)
            for i, parameter in enumerate(parameters):
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            assert (lm.logits(batch) - base).abs().max() > 0.01
            lm.logits(batch, grad=True).logsumexp(-1).sum().backward()
            gradients.append([p.grad for p in parameters])
            with torch.no_grad():
                lm.adapters.release()
                torch.testing.assert_close(lm.logits(batch), base)
                lm.unembedding.weight *= 2
                torch.testing.assert_close(lm.logits(batch), 2 * base)
        for other in gradients[1:]:
            torch.testing.assert_close(other, gradients[0], atol=1e-3, rtol=1e-3)


def test_generation_is_the_same_with_and_without_edits(tiny_model_folder):
    prompts = ["Old Tamsin keeps", "The bell"]
    texts = []
    for backend in BACKENDS:
        lm = load_model(tiny_model_folder, dtype="float32", device="cpu", backend=backend)
        with lm.hooks({"blocks.1.attn.hook_z": torch.zeros_like}):
            edited = generate(lm, prompts, new_tokens=6, greedy=True)
        texts.append((generate(lm, prompts, new_tokens=6, greedy=True), edited))
    assert texts[0] == texts[1] == texts[2]
    assert texts[0][0] != texts[0][1]


def test_an_adapter_that_the_bridge_would_leave_out_is_refused(tokenizer):
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes = {**tiny.FAMILIES["llama"][1], "num_hidden_layers": 2, "pad_token_id": 0}
    lm = HookedLM(Phi3ForCausalLM(Phi3Config(**sizes)).eval(), tokenizer, backend="transformer_lens")
    lm.adapters.attach(lm.lora([0], rank=2, alpha=4, modules="mlp"))
    with pytest.raises(BackendError, match=r"leave 1 adapted modules out, such as model.layers.0.mlp.gate_up_proj"):
        lm.logits(lm.pad([[5, 6]]))


@torch.no_grad()
def test_the_native_bridge_is_the_model_as_it_is_on_weights_of_its_own(lm, tokenizer, tmp_path):
    lm.adapters.load(save_adapter(lm.model, tokenizer, tmp_path, 1))
    batch = lm.tokenize("Old Tamsin keeps the lamp")
    expected, stream = lm.logits(batch), lm.run_with_cache(batch, layers=2)["resid_post"][:, 0]
    bridge = lm.as_transformer_lens()
    logits, cache = bridge.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
    torch.testing.assert_close(logits[:, -1], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache["blocks.2.hook_resid_post"][:, -1], stream, atol=1e-4, rtol=1e-4)
    bridge.enable_compatibility_mode()
    torch.testing.assert_close(lm.logits(batch), expected, atol=1e-5, rtol=1e-5)
    assert bridge.to_tokens("Old Tamsin keeps the lamp", prepend_bos=False).tolist() == batch.input_ids.tolist()


@torch.no_grad()
def test_the_native_wrapper_traces_the_model_as_it_is(lm, tokenizer, tmp_path):
    import nnsight

    lm.adapters.load(save_adapter(lm.model, tokenizer, tmp_path, 1))
    batch = lm.tokenize(["Old Tamsin keeps the lamp", "A bell"])
    wrapper = lm.as_nnsight()
    with lm.adapter(None):
        base = lm.as_nnsight()
    with wrapper.trace(input_ids=batch.input_ids, attention_mask=batch.attention_mask):
        logits = nnsight.save(wrapper.output.logits)
    torch.testing.assert_close(logits[0, -1], lm.logits(batch)[0], atol=1e-4, rtol=1e-4)
    with base.trace(input_ids=batch.input_ids, attention_mask=batch.attention_mask):
        logits = nnsight.save(base.output.logits)
    with lm.adapter(None):
        torch.testing.assert_close(logits[0, -1], lm.logits(batch)[0], atol=1e-4, rtol=1e-4)


def test_remote_passes_carry_all_they_need(tiny_model_folder, tiny_lm, tmp_path):
    # "local" sends each trace through nnsight's serialisation and runs it here, with our own modules hidden
    adapter = save_adapter(tiny_lm.model, tiny_lm.tokenizer, tmp_path, 1)
    remote = load_model(tiny_model_folder, backend="nnsight", remote="local", adapter=adapter)
    assert remote.is_remote
    assert all(weight.is_meta for weight in remote.model.parameters())
    tiny_lm.adapters.load(adapter)
    edit = {"blocks.1.hook_resid_post": lambda x: 0.5 * x}
    with remote.hooks(edit), tiny_lm.hooks(edit):
        assert difference(read(remote, side="left"), read(tiny_lm)) <= 1e-4
    with remote.adapter(None), tiny_lm.adapter(None):
        assert difference(read(remote), read(tiny_lm)) <= 1e-4
    assert difference(read(remote), read(tiny_lm)) <= 1e-4
    with pytest.raises(BackendError, match="not run token by token"):
        generate(remote, ["Old"], new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remote": True}, 'only nnsight runs models on NDIF; expected backend="nnsight"'),
        ({"remote": True, "backend": "nnsight"}, "expected a hub id"),
    ],
)
def test_what_cannot_be_remote_is_refused(tiny_model_folder, settings, message):
    with pytest.raises(ValueError, match=message):
        load_model(tiny_model_folder, **settings)


def test_remote_is_passed_on_to_nnsight(tiny_model_folder, monkeypatch):
    from nnsight import TransformersModel

    remote = load_model(tiny_model_folder, backend="nnsight", remote="local")
    remote._backend._where = {"remote": True}
    asked = []
    monkeypatch.setattr(TransformersModel, "_remote_backend", lambda self, remote, *_: asked.append(remote) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remote.logits(remote.pad([[5, 6]]))
    assert asked == [True]


def test_a_back_end_of_somebody_else_is_loaded_by_name(tiny_model_folder, tiny_lm):
    @declared_backend("counted")
    class Counted(TorchBackend):
        passes = 0

        def run(self, batch, reads=None):
            self.passes += 1
            return super().run(batch, reads)

    try:
        lm = load_model(tiny_model_folder, dtype="float32", device="cpu", backend="counted")
        assert (lm.backend, tiny_lm.backend) == ("counted", "torch")
        before = lm._backend.passes
        assert torch.equal(lm.logits(lm.pad(ROWS)), tiny_lm.logits(tiny_lm.pad(ROWS)))
        assert lm._backend.passes == before + 1
    finally:
        del BACKENDS_DECLARED._found["counted"], BACKENDS_DECLARED._origins["counted"]


def test_importing_the_back_ends_imports_none_of_their_libraries():
    program = "import sys, elm_interp.models; print([m for m in ('nnsight', 'transformer_lens') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_an_unknown_back_end_names_the_closest(tiny_lm):
    with pytest.raises(UnknownNameError, match="Did you mean 'transformer_lens'"):
        HookedLM(tiny_lm.model, tiny_lm.tokenizer, backend="transformerlens")


@pytest.mark.parametrize(("backend", "extra"), [("nnsight", "nnsight"), ("transformer_lens", "transformer-lens")])
def test_a_missing_library_names_the_extra(tiny_lm, monkeypatch, backend, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == backend]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(ImportError, match=rf'pip install "elm-interp\[{extra}\]"'):
        HookedLM(tiny_lm.model, tiny_lm.tokenizer, backend=backend)
