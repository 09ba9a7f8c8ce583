"""Erasing from memory: a model and a concept that have no files of their own become a run that can be opened again."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from elm_interp.data import Concept
from elm_interp.errors import ConfigError, RunFolderError, UnknownNameError
from elm_interp.registry import METHODS
from elm_interp.runs import Run, RunConfig, erase_concept, run_stage
from elm_interp.training import Adapter, Objective, Preset, method

SETTINGS = {"layers": (1, 2), "rank": 2, "steps": 2, "save_every": 1, "fluency_weight": 0, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def _own_method():
    """A method that a user declares in a notebook."""

    @dataclass(frozen=True)
    class Words:
        term: str
        id: str
        ids: tuple[int, ...]

        def __len__(self) -> int:
            return len(self.ids)

    @method("own", presets={"mine": Preset({"strength": 2.0}, training={"steps": 2, "save_every": 1})})
    @dataclass(frozen=True)
    class Own(Objective):
        adapter: Adapter = field(default=Adapter(layers=(1,), rank=2, alpha=4.0))
        strength: float = 1.0

        def pools(self, training):
            return {"erase": training.forget_batch}

        def prepare(self, lm, concept, *, seed=0, progress=False):
            return {"erase": [Words("erase", p.id, tuple(lm.encode([p.text])[0])) for p in concept.passages("forget")]}

        def loss(self, lm, samples):
            logits = lm.logits(lm.pad([s.ids for s in samples]), positions="all", grad=True)
            return {"erase": -self.strength * logits.log_softmax(-1).mean()}

    yield
    METHODS._found.pop("own")


def test_a_concept_in_memory_becomes_a_run_that_opens_again(tiny_lm, tiny_concept, tmp_path):
    before = tiny_lm.logits(tiny_lm.tokenize("The lamp"))
    run = erase_concept(tiny_lm, tiny_concept, preset="paper", out=tmp_path / "x", **SETTINGS)
    assert torch.equal(tiny_lm.logits(tiny_lm.tokenize("The lamp")), before)
    opened = Run.open(tmp_path / "x")
    assert opened.concept.fingerprint() == tiny_concept.fingerprint()
    assert opened.config == run.config
    assert (opened.config.objective.adapter.rank, opened.config.training.steps) == (2, 2)
    run_stage(opened, "evaluate", progress=False)


def test_the_loaded_model_is_shared_and_another_is_refused(tiny_lm, tiny_concept, tmp_path):
    erase_concept(tiny_lm, tiny_concept, preset="paper", out=tmp_path / "x", **SETTINGS)
    assert Run.open(tmp_path / "x", lm=tiny_lm).subject().lm is tiny_lm
    other = tiny_lm.reinitialised()
    with pytest.raises(ConfigError, match="random weights"):
        Run.open(tmp_path / "x", lm=other)


def test_a_model_that_exists_in_memory_only_can_be_erased(tiny_lm, tiny_concept, tmp_path):
    other = tiny_lm.reinitialised()
    erase_concept(other, tiny_concept, preset="paper", out=tmp_path / "x", **SETTINGS)
    assert Run.open(tmp_path / "x", lm=other).finished


def test_unknown_settings_give_the_closest_and_write_nothing(tiny_lm, tiny_concept, tmp_path):
    with pytest.raises(UnknownNameError, match=r"'ranc'.*Did you mean 'rank'"):
        erase_concept(tiny_lm, tiny_concept, out=tmp_path / "x", ranc=3)
    with pytest.raises(ConfigError, match="layers go to 9"):
        erase_concept(tiny_lm, tiny_concept, preset="paper", out=tmp_path / "x", layers=(9,))
    assert not (tmp_path / "x").exists()


def test_another_concept_does_not_resume_a_run(tiny_lm, tiny_concept, tmp_path):
    erase_concept(tiny_lm, tiny_concept, preset="paper", out=tmp_path / "x", **SETTINGS)
    with pytest.raises(RunFolderError, match="--resume"):
        erase_concept(tiny_lm, tiny_concept, preset="paper", out=tmp_path / "x", **SETTINGS)
    erase_concept(tiny_lm, tiny_concept, preset="paper", out=tmp_path / "x", resume=True, **SETTINGS)
    other = replace(tiny_concept, forget=tiny_concept.forget[:4])
    with pytest.raises(RunFolderError, match="another concept"):
        erase_concept(tiny_lm, other, preset="paper", out=tmp_path / "x", resume=True, **SETTINGS)


def test_a_method_of_ones_own_trains_reopens_and_resumes(tiny_lm, tiny_concept, tmp_path):
    run = erase_concept(tiny_lm, tiny_concept, method="own", out=tmp_path / "x", progress=False)
    assert Run.open(run.folder).config.objective == METHODS["own"].preset("mine")
    assert [subject.step for subject in Run.open(run.folder, lm=tiny_lm).subjects()] == [None, 1, 2]


def test_a_config_that_holds_a_concept_says_what_to_do(tiny_concept):
    with pytest.raises(ConfigError, match=r"concept is Concept.*erase_concept"):
        RunConfig(concept=tiny_concept).check()


def test_a_run_shows_itself_short_and_in_html(tiny_lm, tiny_concept, tmp_path):
    run = erase_concept(tiny_lm, tiny_concept, preset="paper", out=tmp_path / "x", **SETTINGS)
    assert len(repr(run)) < 300
    assert "steps 1-2 of 2" in repr(run)
    assert "<table>" in run._repr_html_()
    assert isinstance(run.concept, Concept)
