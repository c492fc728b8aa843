"""A vision-language model on this machine: loaded once per process, asked one conversation at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, LogitsProcessorList

from ip2p.models.loading import check_model_source, from_source, load_once, resolve_device, resolve_dtype


@dataclass(frozen=True, slots=True)
class SeeingModel:
    """A model and its processor."""

    network: Any
    processor: Any

    @torch.inference_mode()
    def answer(
        self,
        messages: Sequence[dict[str, Any]],
        pictures: Sequence[Image.Image],
        *,
        max_new_tokens: int,
        draw: LogitsProcessor | None = None,
    ) -> str:
        """Continues a conversation whose parts of the type `image` are the pictures, in order.

        The likeliest token is taken, of those that `draw` leaves.
        """
        text = self.processor.apply_chat_template(list(messages), add_generation_prompt=True)
        inputs = self.processor(text=text, images=list(pictures), return_tensors="pt")
        inputs = inputs.to(self.network.device, self.network.dtype)
        options = {"logits_processor": LogitsProcessorList([draw])} if draw is not None else {}
        output = self.network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **options)
        return str(self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def load_seeing_model(name: str | None, *, what: str, revision: str | None, device: str, dtype: str) -> SeeingModel:
    """Loads a transformers model that sees pictures; `what` names the setting in errors."""
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)

    def load() -> SeeingModel:
        source = check_model_source(name or "", what=what, marker="config.json")
        options: dict[str, Any] = {"revision": revision, "dtype": getattr(torch, precision)}
        network = from_source(AutoModelForImageTextToText.from_pretrained, source, **options)
        processor = from_source(AutoProcessor.from_pretrained, source, revision=revision)
        return SeeingModel(network.to(place).eval(), processor)

    return load_once(("vlm", name, revision, place, precision), load, files=[name])
