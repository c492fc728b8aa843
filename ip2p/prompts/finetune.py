"""Fine-tunes a causal language model on the original's format: what it learns, what is held out, when it stops.

The loss is on the completion alone. Triplets are held out by a hash of their caption, so no caption is on both sides.
The held-out loss is measured after every epoch, and the best model is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ip2p import store
from ip2p.config import FinetuneConfig, PromptsConfig
from ip2p.models import loading
from ip2p.models.loading import LanguageModel
from ip2p.prompts.captions import ReadyLine, read_entries
from ip2p.prompts.format import format_answer, format_prompt
from ip2p.records import EditTriplet, hash_to_unit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of tokens that the loss ignores."""


@dataclass(slots=True)
class Finetuned:
    """Sizes of the two sides, and the held-out loss over time."""

    num_trained: int
    num_held_out: int
    held_out: list[float] = field(default_factory=list)
    """Loss per token, before the first epoch and after each."""

    @property
    def best_epoch(self) -> int:
        """Number of epochs after which the written model had been trained."""
        return self.held_out.index(min(self.held_out))


def finetune(config: FinetuneConfig) -> Finetuned:
    """Trains a model; writes the best one with its tokenizer and `finetune.json` to the output folder."""
    language_model = loading.load_language_model(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype
    )
    fitting = _fitting(language_model, read_triplets_file(config.triplets))
    trained, held_out = split_triplets(fitting, config.held_out, config.seed)
    result = Finetuned(len(trained), len(held_out))
    learner = _with_lora(language_model.model, config.lora_rank) if config.lora_rank else language_model.model
    optimizer = torch.optim.AdamW(
        [weight for weight in learner.parameters() if weight.requires_grad], lr=config.learning_rate, weight_decay=0.0
    )
    result.held_out.append(held_out_loss(learner, language_model.tokenizer, held_out, config))
    best = _weights(learner)
    for epoch in range(config.num_epochs):
        learner.train()
        ordered = sorted(trained, key=lambda each: hash_to_unit("order", config.seed, epoch, each.id))
        batches = list(_batches(ordered, config.batch_size))
        for batch in tqdm(batches, desc=f"epoch {epoch + 1}", disable=None, leave=False):
            tokens, mask, labels = (tensor.to(learner.device) for tensor in encode(language_model.tokenizer, batch))
            learner(input_ids=tokens, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        result.held_out.append(held_out_loss(learner, language_model.tokenizer, held_out, config))
        logger.info("epoch %d: held-out loss %.4f", epoch + 1, result.held_out[-1])
        if result.best_epoch == epoch + 1:
            best = _weights(learner)
        elif epoch + 1 - result.best_epoch >= config.patience:
            break
    learner.load_state_dict(best, strict=False)
    _write(config, learner, language_model, result)
    return result


def read_triplets_file(source: str) -> list[EditTriplet]:
    """Reads the triplets of a jsonl file without malformed lines. ValueError if there are fewer than two."""
    lines = [line for line in read_entries(PromptsConfig(captions=source)) if isinstance(line, ReadyLine)]
    triplets = [line.triplet for line in lines if line.triplet]
    if len(triplets) < 2:
        raise ValueError(f"triplets {source} holds {len(triplets)} triplets, needs two or more. Give a .jsonl of them.")
    return triplets


def _fitting(language_model: LanguageModel, triplets: Sequence[EditTriplet]) -> list[EditTriplet]:
    """Selects the triplets that the model's context takes whole. ValueError if there are fewer than two."""
    context = getattr(language_model.model.config, "max_position_embeddings", None)
    if context is None:
        return list(triplets)
    fitting = [each for each in triplets if encode(language_model.tokenizer, [each])[0].shape[1] <= context]
    if num_longer := len(triplets) - len(fitting):
        logger.warning("%d of %d triplets are longer than %d tokens", num_longer, len(triplets), context)
    if len(fitting) < 2:
        raise ValueError(f"the model takes {context} tokens, and {len(fitting)} triplets fit. Give a larger model.")
    return fitting


def split_triplets(
    triplets: Sequence[EditTriplet], fraction: float, seed: int
) -> tuple[list[EditTriplet], list[EditTriplet]]:
    """Splits by caption into triplets to learn and triplets held out; neither side is empty."""
    draws = {each.original_prompt: hash_to_unit("held out", seed, each.original_prompt) for each in triplets}
    ordered = sorted(draws, key=lambda caption: draws[caption])
    if len(ordered) < 2:
        raise ValueError("all triplets have the same caption, so none can be held out. Give triplets of two or more.")
    num = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
    held_out = set(ordered[:num])
    sides: tuple[list[EditTriplet], list[EditTriplet]] = [], []
    for triplet in triplets:
        sides[triplet.original_prompt in held_out].append(triplet)
    return sides


def encode(tokenizer: PreTrainedTokenizerBase, triplets: Sequence[EditTriplet]) -> tuple[Tensor, Tensor, Tensor]:
    """Encodes triplets as right-padded (N, T) tokens, mask and labels; prompt and padding have no label."""
    prompts = [list(tokenizer(format_prompt(each.original_prompt))["input_ids"]) for each in triplets]
    texts = [format_answer(each.edit_prompt, each.edited_prompt) for each in triplets]
    ends = [int(tokenizer.eos_token_id)]
    answers = [[*tokenizer(text, add_special_tokens=False)["input_ids"], *ends] for text in texts]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    tokens, labels = torch.zeros(len(triplets), width, dtype=torch.long), torch.full((len(triplets), width), IGNORED)
    mask = torch.zeros_like(tokens)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    return tokens, mask, labels


@torch.inference_mode()
def held_out_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, triplets: Sequence[EditTriplet], config: FinetuneConfig
) -> float:
    """Computes the mean loss per token of the completions."""
    model.train(mode=False)
    total, num = 0.0, 0
    for batch in _batches(triplets, config.batch_size):
        tokens, mask, labels = (tensor.to(model.device) for tensor in encode(tokenizer, batch))
        counted = int((labels[:, 1:] != IGNORED).sum())
        total += float(model(input_ids=tokens, attention_mask=mask, labels=labels).loss) * counted
        num += counted
    return total / num


def _batches(triplets: Sequence[EditTriplet], size: int) -> Iterator[Sequence[EditTriplet]]:
    return (triplets[start : start + size] for start in range(0, len(triplets), size))


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies the trained weights to the CPU."""
    named = model.named_parameters()
    return {name: weight.detach().cpu().clone() for name, weight in named if weight.requires_grad}


def _with_lora(model: PreTrainedModel, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError("lora_rank needs peft. Install it with: pip install peft") from error
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def _write(config: FinetuneConfig, learner: Any, language_model: LanguageModel, result: Finetuned) -> None:
    whole = learner.merge_and_unload() if config.lora_rank else learner
    whole.eval().save_pretrained(config.output, safe_serialization=True)
    language_model.tokenizer.save_pretrained(config.output)
    store.write_json(config.output / "finetune.json", {"config": asdict(config), **asdict(result)})
    loading.unload_all()  # the loaded model is no longer what its name says
