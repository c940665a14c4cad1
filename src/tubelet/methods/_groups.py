"""Which parameters share a rule: weight decay, and rates that fall from the last layer to the first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from torch import nn

from tubelet.core import Group


def undecayed(name: str, parameter: nn.Parameter, exempt: Collection[str] = ()) -> bool:
    """Whether a parameter is kept from weight decay: 1-D, a bias, or one whose name's last part is in ``exempt``."""
    last = name.rsplit(".", 1)[-1]
    return parameter.ndim <= 1 or last == "bias" or last in exempt


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], exempt: Collection[str] = ()) -> list[Group]:
    """Two groups: with the recipe's weight decay, and without any."""
    return layer_groups(named, lambda name: 1.0, exempt)


def layer_groups(named: Iterable[tuple[str, nn.Parameter]], rate: Callable[[str], float], exempt: Collection[str] = ()) -> list[Group]:
    """One group for each pair of rate multiplier (``rate`` of the parameter's name) and weight decay or none."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((rate(name), undecayed(name, parameter, exempt)), []).append(parameter)
    return [Group(params, lr=lr, decay=0.0 if bare else None) for (lr, bare), params in groups.items()]
