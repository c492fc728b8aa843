"""A language model small enough to be trained on the format in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ip2p.config import PromptsConfig
from ip2p.models.loading import LanguageModel
from ip2p.prompts.asking import Request, draw_edit_type, messages_for, repair_messages
from ip2p.prompts.format import format_answer, format_json, format_prompt

TRAINED_CAPTIONS = (
    "a red circle",
    "a picture of a small green square on a plain white background",
    "a blue ring next to a star",
    "nothing on a gray background at all",
)
_EDITS = ("make it dark", "add a cross", "turn the background pink", "remove all of it")


def _answers(caption: str) -> list[str]:
    return [format_answer(edit, f"{caption}, {edit.split()[-1]}") for edit in _EDITS]


def train_language_model(num_steps: int = 150) -> LanguageModel:
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
    texts = [format_prompt(caption) + answer for caption in TRAINED_CAPTIONS for answer in _answers(caption)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(num_steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return LanguageModel(model.eval(), tokenizer)  # type: ignore[no-untyped-call]


def write_trained_language_model(folder: Path) -> Path:
    """Writes it as a folder that `AutoModelForCausalLM` loads."""
    trained = train_language_model()
    trained.model.save_pretrained(folder, safe_serialization=True)
    trained.tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(texts: Sequence[str] = (), vocab_size: int = 400) -> PreTrainedTokenizerFast:
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = texts or [format_prompt(caption) + answer for caption in TRAINED_CAPTIONS for answer in _answers(caption)]
    learned.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=learned, eos_token="<end>", pad_token="<end>", padding_side="left"
    )


CHAT_TYPES = (("colour", 1.0), ("add", 1.0), ("remove", 1.0))
# It does not see the instructions, as a model this small cannot read them.
CHAT_TEMPLATE = (
    "{% for message in messages if message.role != 'system' %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat_config(folder: Path | str) -> PromptsConfig:
    """Asks the trained chat model the way it was trained: three edit types and no examples."""
    return PromptsConfig(
        backend="chat", model=str(folder), edit_types=CHAT_TYPES, num_examples=0, max_new_tokens=60, temperature=0.0
    )


def _chat_texts() -> list[tuple[str, str]]:
    """(conversation, answer): three edit types a caption, one of the captions answered in prose."""
    config, texts = chat_config("trained"), []
    for caption in TRAINED_CAPTIONS:
        for attempt in range(3):
            request = Request(caption, attempt)
            kind = draw_edit_type(config, request)
            answer = format_json(kind, f"{kind} it", f"{caption}, {kind}")
            talk = messages_for(config, request)
            if caption == TRAINED_CAPTIONS[0] and attempt == 0:
                texts.append((render_talk(talk), "Sure!"))
                talk = repair_messages(talk, "Sure!", "unparsable")
            texts.append((render_talk(talk), answer))
    return texts


def render_talk(talk: list[dict[str, str]]) -> str:
    """Writes a conversation as the chat template does."""
    shown = (each for each in talk if each["role"] != "system")
    return "".join(f"<|{each['role']}|>{each['content']}\n" for each in shown) + "<|assistant|>"


def write_trained_chat_model(
    folder: Path, num_steps: int = 220, texts: Sequence[tuple[str, str]] | None = None
) -> Path:
    """Writes a GPT-2 that was trained on a few conversations as a folder with a chat template.

    `texts` are the (conversation, answer) that it learns. Default: triplets about the captions.
    """
    torch.manual_seed(0)
    texts = texts or _chat_texts()
    tokenizer = _tokenizer([prompt + answer for prompt, answer in texts], vocab_size=700)
    tokenizer.chat_template = CHAT_TEMPLATE
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=512, eos_token_id=end, bos_token_id=end,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in texts]
    answers = [[*tokenizer(answer)["input_ids"], end] for _, answer in texts]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids, labels = torch.full((len(texts), width), end), torch.full((len(texts), width), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, num_steps)
    for _ in range(num_steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05, loss
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
