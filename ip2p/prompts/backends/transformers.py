"""Continues many prompts with a causal language model at once, each answer independent of its batch.

Every draw is a hash of (seed, caption, attempt, position), so neither batch size, order nor resume changes an answer.
Prompts of similar length share a batch, padded on the left; rows that have stopped leave it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ip2p.config import PromptsConfig
from ip2p.models.loading import LanguageModel
from ip2p.prompts.asking import Answer, Message, Request, messages_for, needs_repair, repair_messages
from ip2p.prompts.format import STOP, format_prompt
from ip2p.records import hash_to_unit

STOP_WINDOW = 16
"""Tokens at the end of an answer in which the stop string is looked for; no tokenizer needs more for it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens to continue, and the values from which the draws are hashed."""

    tokens: Sequence[int]
    draws: tuple[object, ...]


@dataclass(slots=True)
class _Row:
    """An answer that is being written: its place in the requests, its prompt and the tokens so far."""

    index: int
    prompt: Prompt
    room: int
    answer: list[int] = field(default_factory=list)
    open: bool = True


def _pad_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Returns token ids and attention mask, both (rows, longest prompt)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def draw_tokens(logits: Tensor, uniforms: Sequence[float], temperature: float, top_p: float | None = None) -> Tensor:
    """Draws one token per row of (rows, vocabulary) logits: the distribution's quantile at a number in [0, 1).

    With `top_p`, the distribution is that of the fewest, likeliest tokens that hold this probability together.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_p is not None:
        ordered, tokens = probabilities.sort(stable=True, dim=-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        probabilities = torch.zeros_like(ordered).scatter(-1, tokens, ordered)
    cumulative = probabilities.cumsum(-1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


class TransformersBackend:
    """Continues prompts with a causal language model, up to its end token or `stop`."""

    stop: ClassVar[str | None] = None

    def __init__(self, language_model: LanguageModel, config: PromptsConfig) -> None:
        self.language_model, self.config = language_model, config
        model, tokenizer = language_model.model, language_model.tokenizer
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        more = ends if isinstance(ends, list) else [ends]
        self._ends = {int(token) for token in [tokenizer.eos_token_id, *more] if token is not None}
        """The tokenizer's end of text, and the other tokens that the model was trained to end an answer with."""

    def continue_prompts(self, prompts: Sequence[Prompt], on_answer: Callable[[int], object]) -> list[str]:
        """Returns one text per prompt, in order; an empty one if a prompt fills the context."""
        context = getattr(self.language_model.model.config, "max_position_embeddings", None)
        most, size = self.config.max_new_tokens, self.config.batch_size
        rooms = [most if context is None else min(most, context - len(prompt.tokens)) for prompt in prompts]
        rows = [_Row(index, prompts[index], room) for index, room in enumerate(rooms) if room > 0]
        on_answer(len(prompts) - len(rows))
        rows.sort(key=lambda row: len(row.prompt.tokens))
        answers = [""] * len(prompts)
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            self._continue_batch(batch)
            for row in batch:
                answers[row.index] = self._decode(row.answer)
            on_answer(len(batch))
        return answers

    def _decode(self, tokens: list[int]) -> str:
        tokenizer = self.language_model.tokenizer
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @torch.inference_mode()
    def _continue_batch(self, batch: list[_Row]) -> None:
        """Extends the rows token by token until each has stopped."""
        model, tokenizer, config = self.language_model.model, self.language_model.tokenizer, self.config
        ids, mask = _pad_left([row.prompt.tokens for row in batch], int(tokenizer.pad_token_id or 0))
        ids, mask = ids.to(model.device), mask.to(model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        rows, cache, parameters = batch, None, inspect.signature(model.forward).parameters
        while True:
            optional = {"position_ids": positions, "logits_to_keep": 1}
            inputs = {name: value for name, value in optional.items() if name in parameters}
            output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **inputs)
            cache = output.past_key_values
            uniforms = [hash_to_unit(config.seed, *row.prompt.draws, len(row.answer)) for row in rows]
            tokens = draw_tokens(output.logits[:, -1].float(), uniforms, config.temperature, config.top_p)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                self._extend(row, token)
            kept = [place for place, row in enumerate(rows) if row.open]
            if not kept:
                return
            if len(kept) < len(rows):
                places = torch.tensor(kept, device=model.device)
                cache.batch_select_indices(places)
                rows = [rows[place] for place in kept]
                mask, tokens, positions = mask[places], tokens[places], positions[places]
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    def _extend(self, row: _Row, token: int) -> None:
        if token in self._ends:
            row.open = False
            return
        row.answer.append(token)
        stopped = self.stop is not None and self.stop in self._decode(row.answer[-STOP_WINDOW:])
        row.open = not stopped and len(row.answer) < row.room


class CausalBackend(TransformersBackend):
    """Asks a model that was fine-tuned in the original's format."""

    stop = STOP

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """Returns one answer per request, in order; an empty one if a prompt fills the model's context."""
        tokenizer, prompts = self.language_model.tokenizer, []
        for request in requests:
            tokens = list(tokenizer(format_prompt(request.caption))["input_ids"])
            prompts.append(Prompt(tokens, (request.topic, request.attempt)))
        return list(map(Answer, self.continue_prompts(prompts, on_answer)))


class ChatBackend(TransformersBackend):
    """Asks an instruction-tuned model; malformed answers are repaired together."""

    def __init__(self, language_model: LanguageModel, config: PromptsConfig) -> None:
        """Raises a ValueError if the model has no chat template."""
        if not getattr(language_model.tokenizer, "chat_template", None):
            raise ValueError(
                f"prompts.model {config.model} has no chat template. Give an instruction-tuned model, or set "
                "prompts.backend to causal_lm for one that was fine-tuned in the original's format."
            )
        super().__init__(language_model, config)

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """Returns one answer per request, in order."""
        talks = [messages_for(self.config, request) for request in requests]
        draws = [(request.topic, request.attempt) for request in requests]
        answers = [Answer(text) for text in self.converse(talks, draws, on_answer)]
        for repair in range(1, self.config.num_repairs + 1):
            reasons = [needs_repair(self.config, answer.text) for answer in answers]
            malformed = [index for index, reason in enumerate(reasons) if reason]
            for index in malformed:
                talks[index] = repair_messages(talks[index], answers[index].text, reasons[index])
            drawn_anew = [(*draws[index], repair) for index in malformed]
            texts = self.converse([talks[index] for index in malformed], drawn_anew, lambda num: None)
            for index, text in zip(malformed, texts, strict=True):
                answers[index] = Answer(text, (*answers[index].earlier, answers[index].text))
        return answers

    def converse(
        self,
        talks: Sequence[list[Message]],
        draws: Sequence[tuple[object, ...]],
        on_answer: Callable[[int], object],
    ) -> list[str]:
        """Returns the next message of each conversation; each draws by a hash of its own values."""
        tokenizer, prompts = self.language_model.tokenizer, []
        for talk, values in zip(talks, draws, strict=True):
            text = str(tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))
            prompts.append(Prompt(list(tokenizer(text, add_special_tokens=False)["input_ids"]), values))
        return self.continue_prompts(prompts, on_answer)
