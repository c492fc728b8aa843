"""Weights as DeepSpeed's ZeRO keeps them, at stages 1 and 2: whole in every process, while their float32 masters, which
the optimizer steps, lie end to end in one long tensor per group, of which each process holds a stretch.

DeepSpeed tells where a parameter lies in two functions, which put one into the masters and take one out. All else is
put and taken by way of them: it takes the masters' place for that time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ip2p.training.sharding import fill


@dataclass(frozen=True, slots=True)
class ZeroParts:
    """Of every group of parameters a stretch."""

    skeleton: UNet2DConditionModel
    unet: nn.Module
    optimizer: Any
    """DeepSpeed's own, around torch's."""
    groups: Sequence[Sequence[nn.Parameter]]
    """The parameters in the order of torch's optimizer."""

    def masters(self) -> list[Tensor]:
        return [stretch.detach() for stretch in self.optimizer.single_partition_of_fp32_groups]

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> UNet2DConditionModel | None:
        return fill(self.skeleton, self._taken(parts, self.unet.parameters()), is_main=is_main)

    @torch.no_grad()
    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        values = [(parameter, weights[name]) for name, parameter in self.unet.named_parameters()]
        for part, found in zip(parts, self._put(values), strict=True):
            part.copy_(found)
        if parts[0].data_ptr() == self.masters()[0].data_ptr():  # not the average, whose weights no process has whole
            for parameter, value in values:
                parameter.data.copy_(value)

    def whole_states(self, *, is_main: bool) -> dict[str, Any] | None:
        inner = self.optimizer.optimizer
        stretches = [inner.state[stretch] for stretch in self.optimizer.single_partition_of_fp32_groups]
        counts = {name: value.cpu() for name, value in stretches[0].items() if not value.ndim}
        states = {number: {name: v.clone() for name, v in counts.items()} for number, _ in enumerate(self._ordered())}
        for name in (name for name, value in stretches[0].items() if value.ndim):
            parts = [state[name] for state in stretches]
            for number, value in enumerate(self._taken(parts, self._ordered())):
                if is_main:
                    states[number][name] = value.cpu()
        return {"state": states, "param_groups": self._numbered(inner.param_groups)} if is_main else None

    def put_states(self, states: dict[str, Any]) -> None:
        inner = self.optimizer.optimizer
        found: list[dict[str, Tensor]] = [{} for _ in self.groups]
        for name, value in states["state"][0].items():
            if value.ndim:
                values = [(p, states["state"][number][name]) for number, p in enumerate(self._ordered())]
                for state, part in zip(found, self._put(values), strict=True):
                    state[name] = part
            else:
                for state in found:
                    state[name] = value.to(self.masters()[0].device, copy=True)
        for stretch, state in zip(self.optimizer.single_partition_of_fp32_groups, found, strict=True):
            inner.state[stretch] = state
        for group, saved in zip(inner.param_groups, states["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})

    def _ordered(self) -> list[nn.Parameter]:
        return [parameter for group in self.groups for parameter in group]

    def _numbered(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups with numbers for the parameters that each has without DeepSpeed."""
        numbers = iter(range(len(self._ordered())))
        return [
            {**group, "params": [next(numbers) for _ in parameters]}
            for group, parameters in zip(groups, self.groups, strict=True)
        ]

    def _taken(self, parts: Sequence[Tensor], parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
        """Each whole, where `parts` have it."""
        from deepspeed.utils import safe_get_full_fp32_param

        with self._masters_kept():
            for master, part in zip(self.masters(), parts, strict=True):
                master.copy_(part)
            for parameter in parameters:
                yield safe_get_full_fp32_param(parameter)

    def _put(self, values: Iterable[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
        """Parts that have these values."""
        from deepspeed.utils import safe_set_full_fp32_param

        with self._masters_kept():
            for parameter, value in values:
                safe_set_full_fp32_param(parameter, value.contiguous().to(parameter.device))
            return [master.clone() for master in self.masters()]

    @contextmanager
    def _masters_kept(self) -> Iterator[None]:
        kept = [master.clone() for master in self.masters()]
        try:
            yield
        finally:
            for master, before in zip(self.masters(), kept, strict=True):
                master.copy_(before)
