"""Fixtures of all tests: a tiny random model, a tiny concept for it, and (for slow tests) the real small model."""

import os

# no test may reach the hub: a name that is not on this machine must fail at once
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# workers that each took all cores would slow each other down manyfold
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

from pathlib import Path

import matplotlib
import pytest
import tiny
from hypothesis import HealthCheck, settings

from elm_interp.data import Concept
from elm_interp.models import HookedLM, load_model
from elm_interp.registry import METRICS

matplotlib.use("Agg")
# the same cases in every run of the tests; `make fuzz` draws new ones, ten times as many
_shared = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("default", max_examples=1000, derandomize=True, **_shared)
settings.register_profile("fuzz", max_examples=10_000, **_shared)
settings.load_profile("fuzz" if os.environ.get("ELM_INTERP_FUZZ") == "1" else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "smol" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every test has an empty cache of its own, except slow ones, which share the user's with its unpacked model."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("ELM_INTERP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 4-layer Llama (d_model 32, 400 tokens, float32) and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.make_model().save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_lm(tiny_model_folder: Path) -> HookedLM:
    """The tiny model, loaded anew for each test."""
    return load_model(tiny_model_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_concept() -> Concept:
    """A small concept in memory: 12 + 12 passages, 12 + 8 + 8 questions, half of them train."""
    return tiny.make_concept()


@pytest.fixture(scope="session")
def tiny_concept_folder(tiny_concept: Concept, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same concept as a folder of JSON Lines."""
    return tiny.write_concept(tiny_concept, tmp_path_factory.mktemp("concepts") / tiny_concept.name)


@pytest.fixture(scope="session")
def smol() -> HookedLM:
    """The default model, from the user's cache; a test that asks for it is slow."""
    return load_model("smollm2-135m")


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics that a test declares are forgotten after it."""
    list(METRICS)  # everything of elm_interp is declared before, and stays
    for name in ("_found", "_origins"):
        monkeypatch.setattr(METRICS, name, dict(getattr(METRICS, name)))
