"""docs/translate.md: what stands there for the peers and for us runs, and gives the same numbers."""

import re
import runpy
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "translate.md"
SHARED = ["Read the residual stream", "Edit: zero the stream", "One head", "Patch"]


def snippets(section: str) -> dict[str, str]:
    """Code blocks of the section with this beginning, by the word above each, cut to a model of four layers."""
    body = next(part for part in PAGE.read_text().split("\n## ") if part.startswith(section))
    blocks = dict(re.findall(r"^([\w]+)\n\n```python\n(.*?)```", body, flags=re.DOTALL | re.MULTILINE))
    return {word: re.sub(r"(blocks\.|layers\.|layers\[)7", r"\g<1>2", code) for word, code in blocks.items()}


@pytest.mark.parametrize("section", SHARED)
@torch.no_grad()
def test_all_ways_of_writing_give_the_same(section, tiny_lm, tmp_path):
    nnsight = pytest.importorskip("nnsight")
    pytest.importorskip("transformer_lens")
    bridge = tiny_lm.as_transformer_lens()
    bridge.cfg.default_prepend_bos = False
    text, clean, corrupted = "Old Tamsin keeps the lamp", "the bell of Gull", "the Gull of bell"
    assert len(set(map(len, tiny_lm.encode([clean, corrupted])))) == 1
    found = {}
    for word, code in snippets(section).items():
        if word == "baukit":
            continue  # on no package index
        model = {"TransformerLens": bridge, "nnsight": tiny_lm.as_nnsight(), "here": None}[word]
        names = {"torch": torch, "model": model, "lm": tiny_lm, "batch": tiny_lm.tokenize([text]), "d_head": 8}
        names |= {"nnsight": nnsight, "text": text, "clean": clean, "corrupted": corrupted}
        path = tmp_path / f"{word}.py"  # nnsight reads the source of what it runs
        path.write_text(code)
        result = runpy.run_path(str(path), init_globals=names)
        value = result["x"] if section.startswith("Read") else result["logits"]
        found[word] = value[:, -1] if value.shape[-1] == tiny_lm.d_vocab and value.ndim == 3 else value
    assert found.keys() == {"TransformerLens", "nnsight", "here"}
    for value in found.values():
        torch.testing.assert_close(value, found["here"], atol=1e-4, rtol=1e-4)
