"""The registry: names are unique, unknown ones give the closest, a broken plug-in stops nothing."""

import pytest

from elm_interp import registry
from elm_interp.errors import ConfigError, UnknownNameError, UnknownSiteError
from elm_interp.registry import METHODS, SITES, Registry, discover


def one(): ...


def two(): ...


def test_what_is_declared_is_found_in_order():
    found = Registry("thing")
    found.add("b", one)
    found.add("a", two)
    assert list(found) == ["b", "a"]
    assert found["a"] is two
    assert len(found) == 2


def test_an_unknown_name_gives_the_closest():
    with pytest.raises(UnknownNameError, match="Did you mean 'repnoise'"):
        METHODS["repnoize"]
    with pytest.raises(UnknownSiteError, match="Did you mean 'resid_post'"):
        SITES["resid_pots"]
    assert "repnoize" not in METHODS


def test_a_name_is_taken_once_but_its_module_may_be_reloaded():
    found = Registry("thing")
    found.add("a", one)
    found.add("a", one)
    with pytest.raises(ConfigError, match=r"thing 'a' of .* is declared already"):
        found.add("a", two)


def test_a_broken_plug_in_is_left_out_with_a_warning(monkeypatch):
    class Broken:
        name, value = "theirs", "theirs.module"

        def load(self):
            raise ModuleNotFoundError("no module named theirs")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Broken()])
    monkeypatch.setattr(registry, "_done", [])
    with pytest.warns(UserWarning, match=r"plug-in theirs .* was left out: ModuleNotFoundError"):
        discover()
    assert "elm" in METHODS
