"""Attacks: ways to bring erased knowledge back. Declared attacks stand in `elm_interp.registry.ATTACKS`."""

from elm_interp.attack.contract import Attack, Budget, attack, measure_attack

__all__ = ["Attack", "Budget", "attack", "measure_attack"]
