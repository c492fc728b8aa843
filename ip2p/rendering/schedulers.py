"""The scheduler that pairs are rendered with: the model's own or another by name, on the model's noise schedule."""

from __future__ import annotations

import inspect
import logging
from functools import cache
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin

logger = logging.getLogger(__name__)

UNPAIRED_SCHEDULERS = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""These draw noise from generators of their own, which two sides of a pair cannot share."""


def new_scheduler(pipeline: Any, name: str | None) -> Any:
    """A fresh scheduler (they hold state) on the model's noise schedule; the model's own class where `name` is None."""
    own = pipeline.scheduler
    if name is None:
        return type(own).from_config(own.config)
    scheduler_class: Any = getattr(diffusers, name, None)
    if not _can_render_pairs(scheduler_class):
        known = ", ".join(usable_schedulers(pipeline))
        raise ValueError(f"rendering.scheduler {name} cannot render pairs with this model. Use one of {known}.")
    _warn_of_lost_schedule(own, scheduler_class)
    return scheduler_class.from_config(own.config)


def usable_schedulers(pipeline: Any) -> list[str]:
    """Names of the schedulers that can render pairs: the model's own, and those that diffusers lets it change to."""
    known = {type(pipeline.scheduler), *(getattr(diffusers, kind.name) for kind in KarrasDiffusionSchedulers)}
    return sorted(found.__name__ for found in known if _can_render_pairs(found))


def _can_render_pairs(scheduler_class: Any) -> bool:
    if not inspect.isclass(scheduler_class) or not issubclass(scheduler_class, SchedulerMixin):
        return False
    return scheduler_class.__name__ not in UNPAIRED_SCHEDULERS and _understands(scheduler_class, "beta_schedule")


def _understands(scheduler_class: Any, option: str) -> bool:
    return option in inspect.signature(scheduler_class).parameters


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _warn_of_lost_schedule(own: Any, scheduler_class: Any) -> None:
    for option in ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing"):
        value = own.config.get(option)
        if value not in (None, False, "epsilon", "leading") and not _understands(scheduler_class, option):
            _warn_once(f"{scheduler_class.__name__} has no {option}, which this model was trained for ({value})")
