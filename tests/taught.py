"""A language model small enough to be taught the format in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ip2p.loading import LanguageModel
from ip2p.prompts.parse import format_answer, format_prompt

TAUGHT_CAPTIONS = (
    "a red circle",
    "a picture of a small green square on a plain white background",
    "a blue ring next to a star",
    "nothing on a gray background at all",
)
_EDITS = ("make it dark", "add a cross", "turn the background pink", "remove all of it")


def _answers(caption: str) -> list[str]:
    return [format_answer(edit, f"{caption}, {edit.split()[-1]}") for edit in _EDITS]


def teach_language_model(num_steps: int = 150) -> LanguageModel:
    """Overfits a GPT-2 (absolute positions: padding must not shift them) to four answers a caption."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        eos_token_id=end,
        bos_token_id=end,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    texts = [format_prompt(caption) + answer for caption in TAUGHT_CAPTIONS for answer in _answers(caption)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(num_steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return LanguageModel(model.eval(), tokenizer)


def write_taught_language_model(folder: Path) -> Path:
    """Writes it as a folder that `AutoModelForCausalLM` loads."""
    taught = teach_language_model()
    taught.model.save_pretrained(folder, safe_serialization=True)
    taught.tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [format_prompt(caption) + answer for caption in TAUGHT_CAPTIONS for answer in _answers(caption)]
    learned.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=learned, eos_token="<end>", pad_token="<end>", padding_side="left")
