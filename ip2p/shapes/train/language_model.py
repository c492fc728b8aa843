"""Trains the language model: a small Llama, on triplets in the original's delimiter format."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ip2p.prompts.format import format_answer, format_prompt
from ip2p.shapes.language import caption, describe, draw_edit
from ip2p.shapes.train.loop import LoopConfig, train

BATCH_SIZE = 64
CONTEXT_LENGTH = 128
END = "<|endoftext|>"


def draw_text(rng: random.Random) -> tuple[str, str]:
    """Draws a prompt and its completion, in the format that the original was fine-tuned on."""
    edit = draw_edit(rng)
    phrasing = rng.randrange(12)
    before, after = caption(describe(edit.original), phrasing), caption(describe(edit.edited), phrasing)
    return format_prompt(before), format_answer(edit.edit_prompt, after)


def write_language_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Trains a byte-level tokenizer on the texts themselves (about one token a word) and saves it."""
    rng = random.Random("language-model vocabulary")
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(("".join(draw_text(rng)) for _ in range(3000)), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=learned, eos_token=END, pad_token=END, bos_token=END, model_max_length=CONTEXT_LENGTH
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_language_model(vocab_size: int) -> LlamaForCausalLM:
    """Returns the untrained model."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )


def train_language_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int, num_steps: int, device: str = "cpu"
) -> LlamaForCausalLM:
    """Trains the model on the completions; the prompts carry no loss."""
    torch.manual_seed(seed)
    model = new_language_model(len(tokenizer))
    torch.nn.Module.to(model, device)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"{seed} language {step}")
        tokens, labels = _batch(tokenizer, [draw_text(rng) for _ in range(BATCH_SIZE)])
        loss: Tensor = model(input_ids=tokens.to(device), labels=labels.to(device)).loss
        return loss

    config = LoopConfig(num_steps=num_steps, learning_rate=2e-3, warmup_steps=100, ema_decay=0.99)
    train(model, loss_at, config, checkpoint=folder / "language_model.pt")
    return model


def _batch(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Returns right-padded (N, T) tokens, and labels that are -100 on the prompt and the padding."""
    prompts = [tokenizer(prompt).input_ids for prompt, _ in texts]
    answers = [[*tokenizer(completion).input_ids, tokenizer.eos_token_id] for _, completion in texts]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.zeros(len(texts), longest, dtype=torch.long)
    labels = torch.full((len(texts), longest), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return tokens, labels
