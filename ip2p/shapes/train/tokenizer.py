"""The tokenizer of the text tower: byte-pair encoding in which every word of the domain is one token."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from ip2p.shapes.language import draw_caption, draw_edit

CONTEXT_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def domain_words(num_edits: int = 4000) -> list[str]:
    """Every word that captions and instructions use."""
    rng = random.Random("vocabulary")
    words: set[str] = set()
    for _ in range(num_edits):
        edit = draw_edit(rng)
        words |= set(re.findall(r"\w+", f"{draw_caption(rng, edit.original)} {edit.edit_prompt}"))
    return sorted(words)


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Builds the tokenizer, with the end token last as CLIP's pooling expects, and saves it in both file formats."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=[]
    )
    learned.train_from_iterator(domain_words(), trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    alphabet = sorted(ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    symbols += [a + b for a, b in merges]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*symbols, START, END]))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT_LENGTH)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return tokenizer
