"""What chance decides of a candidate, by hash: no draw depends on any other, nor on shards, order or resume."""

from __future__ import annotations

from dataclasses import asdict, replace

from ip2p.config import RenderingConfig
from ip2p.records import DRAWN_COLUMNS, Candidate, EditTriplet, RenderSpec, hash_to_seed, hash_to_unit


def draw_spec(config: RenderingConfig, triplet: EditTriplet, number: int) -> RenderSpec:
    """The spec of a triplet's candidate `number`, a pure function of (seed, triplet, number) and the ranges."""
    key = (config.seed, triplet.id, number)
    config = settings_for(config, triplet.edit_type)
    return RenderSpec(
        triplet_id=triplet.id,
        candidate=number,
        seed=hash_to_seed(*key),
        **{name: _uniform(getattr(config, name), name, *key) for name in DRAWN_COLUMNS},
    )


def draw_candidates(config: RenderingConfig, triplet: EditTriplet) -> list[Candidate]:
    """A triplet's candidates, numbered from 0."""
    num = settings_for(config, triplet.edit_type).num_candidates
    return [Candidate(triplet=triplet, spec=draw_spec(config, triplet, number)) for number in range(num)]


def settings_for(config: RenderingConfig, edit_type: str) -> RenderingConfig:
    """The settings with the edit type's own in place of the general ones."""
    own = config.per_edit_type.get(edit_type)
    if own is None:
        return config
    return replace(config, **{name: value for name, value in asdict(own).items() if value is not None})


def _uniform(bounds: tuple[float, float], *key: object) -> float:
    low, high = bounds
    return low + (high - low) * hash_to_unit(*key)
