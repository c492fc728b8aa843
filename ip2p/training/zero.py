"""Handles weights as DeepSpeed's ZeRO keeps them, at stages 1 and 2.

They are whole in every process, while their float32 masters, which the optimizer steps, lie end to end in one long
tensor per group, of which each process holds a slice. Two functions of DeepSpeed put one parameter into the masters
and take one out. All other values go through them too: they take the masters' place meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ip2p.training.sharding import fill


@dataclass(frozen=True, slots=True)
class ZeroParts:
    """One contiguous slice of each parameter group."""

    skeleton: Any
    denoiser: nn.Module
    optimizer: Any
    """DeepSpeed's own, around torch's."""
    groups: Sequence[Sequence[nn.Parameter]]
    """The parameters in the order of torch's optimizer."""

    def masters(self) -> list[Tensor]:
        return [own_slice.detach() for own_slice in self.optimizer.single_partition_of_fp32_groups]

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> Any | None:
        return fill(self.skeleton, self._taken(parts, self.denoiser.parameters()), is_main=is_main)

    @torch.no_grad()
    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        values = [(parameter, weights[name]) for name, parameter in self.denoiser.named_parameters()]
        for part, filled in zip(parts, self._put(values), strict=True):
            part.copy_(filled)
        if parts[0].data_ptr() == self.masters()[0].data_ptr():  # not the average, whose weights no process has whole
            for parameter, value in values:
                parameter.data.copy_(value)

    def whole_states(self, *, is_main: bool) -> dict[str, Any] | None:
        inner = self.optimizer.optimizer
        slices = [inner.state[own_slice] for own_slice in self.optimizer.single_partition_of_fp32_groups]
        counts = {name: value.cpu() for name, value in slices[0].items() if not value.ndim}
        states = {number: {name: v.clone() for name, v in counts.items()} for number, _ in enumerate(self._ordered())}
        for name in (name for name, value in slices[0].items() if value.ndim):
            parts = [state[name] for state in slices]
            for number, value in enumerate(self._taken(parts, self._ordered())):
                if is_main:
                    states[number][name] = value.cpu()
        return {"state": states, "param_groups": self._numbered(inner.param_groups)} if is_main else None

    def put_states(self, states: dict[str, Any]) -> None:
        inner = self.optimizer.optimizer
        per_group: list[dict[str, Tensor]] = [{} for _ in self.groups]
        for name, value in states["state"][0].items():
            if value.ndim:
                values = [(p, states["state"][number][name]) for number, p in enumerate(self._ordered())]
                for state, part in zip(per_group, self._put(values), strict=True):
                    state[name] = part
            else:
                for state in per_group:
                    state[name] = value.to(self.masters()[0].device, copy=True)
        for own_slice, state in zip(self.optimizer.single_partition_of_fp32_groups, per_group, strict=True):
            inner.state[own_slice] = state
        for group, saved in zip(inner.param_groups, states["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})

    def _ordered(self) -> list[nn.Parameter]:
        return [parameter for group in self.groups for parameter in group]

    def _numbered(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the groups with the numbers that their parameters have without DeepSpeed."""
        numbers = iter(range(len(self._ordered())))
        return [
            {**group, "params": [next(numbers) for _ in parameters]}
            for group, parameters in zip(groups, self.groups, strict=True)
        ]

    def _taken(self, parts: Sequence[Tensor], parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
        """Yields each parameter whole, with the values of `parts`."""
        from deepspeed.utils import safe_get_full_fp32_param

        with self._masters_kept():
            for master, part in zip(self.masters(), parts, strict=True):
                master.copy_(part)
            for parameter in parameters:
                yield safe_get_full_fp32_param(parameter)

    def _put(self, values: Iterable[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
        """Returns parts that have these values."""
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
