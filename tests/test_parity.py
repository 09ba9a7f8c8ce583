"""Parity: the most used families against plain transformers; what is refused names the layer that is the reason."""

import pytest

from elm_interp.models import parity

MOST_USED = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi3", "gpt_oss", "olmo2",
]  # fmt: skip


@pytest.mark.parametrize("family", MOST_USED)
def test_a_family_is_as_in_plain_transformers(family):
    row = parity.examine(family)
    assert (row.status, row.reason) == ("ok", "")
    assert set(row.differences) == set(parity.CHECKS)
    assert not {"q", "k", "v", "resid_pre", "attn_out", "mlp_out", "resid_post", "pattern"} & row.absent.keys()


@pytest.mark.parametrize("family", ["opt", "bloom", "mpt", "dbrx", "granite", "granitemoeshared", "falcon", "cohere"])
def test_a_family_that_adds_otherwise_is_mapped(family):
    row = parity.examine(family)
    assert row.status == "ok", row.reason
    assert row.differences["sites add up"] <= parity.TOLERANCE


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("mamba", "MambaMixer"),
        ("bamba", "BambaMixer"),
        ("bert", "BertLayer"),
        ("bart", "encoder_attn"),
        ("lfm2_moe", "ShortConv"),
    ],
)
def test_what_is_refused_names_the_layer(family, layer):
    row = parity.examine(family)
    assert row.status == "refused"
    assert layer in row.reason


def test_the_table_is_a_page(tmp_path):
    parity.main(("llama", "mamba"), tmp_path / "rows.json", tmp_path / "models.md")
    page = (tmp_path / "models.md").read_text(encoding="utf-8")
    assert "| llama |" in page
    assert "2 families, with transformers " in page
    assert ": 1 ok, 1 refused." in page
