"""Teaches the text tower to read before it is frozen: linear heads on its states answer questions about a text.

Two objects never share a shape, so "which colour and size has the star, if any" for each shape fully describes a scene.
The heads are discarded. What remains are states from which every attribute and every binding can be read; the denoiser
and CLIP's picture tower are trained against them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ip2p.shapes.language import EDIT_TYPES, SceneEdit, draw_caption, draw_edit
from ip2p.shapes.scene import ATTRIBUTES, BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, SceneObject
from ip2p.shapes.train.loop import LoopConfig, train

BATCH_SIZE = 96
CONTEXT_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
_BACKGROUNDS = tuple(BACKGROUNDS)
CAPTION_CLASSES = [len(COLOURS) + 1, len(SIZES) + 1] * len(SHAPES) + [len(BACKGROUNDS)]
EDIT_CLASSES = [
    len(EDIT_TYPES),
    len(SHAPES) + 1,
    len(BACKGROUNDS) + 1,
    *(len(values) + 1 for values in ATTRIBUTES.values()),
]


def caption_answers(scene: Scene) -> list[int]:
    """Returns the class of each shape's colour and size (the last class: no such shape), then of the background."""
    things = {thing.shape: thing for thing in scene.objects}
    answers = [_class_of(things.get(shape), name) for shape in SHAPES for name in ("colour", "size")]
    return [*answers, _BACKGROUNDS.index(scene.background)]


def edit_answers(edit: SceneEdit) -> list[int]:
    """Returns the classes of the edit's type, the shape that it is about, and what it sets (last class: nothing).

    It can set a background, a size, a colour and a shape.
    """
    before, after, kind = edit.original, edit.edited, edit.edit_type
    old = next((thing for thing in before.objects if thing not in after.objects), None)
    new = next((thing for thing in after.objects if thing not in before.objects), None)
    named = (kind,) if kind in ATTRIBUTES else tuple(ATTRIBUTES)
    return [
        EDIT_TYPES.index(kind),
        _class_of(old, "shape"),
        _BACKGROUNDS.index(after.background) if kind == "background" else len(_BACKGROUNDS),
        *(_class_of(new if name in named else None, name) for name in ATTRIBUTES),
    ]


def _class_of(thing: SceneObject | None, attribute: str) -> int:
    values = ATTRIBUTES[attribute]
    return len(values) if thing is None else values.index(getattr(thing, attribute))


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Returns (N, CONTEXT_LENGTH) token ids, padded."""
    tokens: Tensor = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens


class Reader(nn.Module):
    """A CLIP's text tower with linear heads."""

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.clip = clip
        width = clip.ln_final.normalized_shape[0]
        self.caption_head = nn.Linear(width, sum(CAPTION_CLASSES))
        self.edit_head = nn.Linear(width, sum(EDIT_CLASSES))
        clip.visual.requires_grad_(False)

    def loss(self, tokens: Tensor, answers: Tensor, head: nn.Linear, classes: list[int]) -> Tensor:
        """Returns the mean cross-entropy of all questions, asked at the end token and at a padding position."""
        x = self.clip.token_embedding(tokens) + self.clip.positional_embedding
        states = self.clip.ln_final(self.clip.transformer(x, attn_mask=self.clip.attn_mask))  # (N, T, width)
        end = tokens.argmax(-1)
        last = tokens.shape[1] - 1
        padding = end + (torch.rand(len(end), device=end.device) * (last - end + 1)).long()
        rows = torch.arange(len(end), device=end.device)
        logits = head(torch.cat([states[rows, end], states[rows, padding]]))
        return question_loss(logits, torch.cat([answers, answers]), classes)


def question_loss(logits: Tensor, answers: Tensor, classes: list[int]) -> Tensor:
    """Returns the mean cross-entropy of (N, sum of classes) logits over several questions, given (N, questions)."""
    parts = torch.split(logits, classes, -1)
    return torch.stack([F.cross_entropy(part, answers[:, k]) for k, part in enumerate(parts)]).mean()


def train_text_tower(
    folder: Path, clip: open_clip.CLIP, tokenizer: CLIPTokenizer, *, seed: int, num_steps: int, device: str = "cpu"
) -> None:
    """Teaches the text tower of `clip` in place; the contrastive training that follows moves its projection."""
    torch.manual_seed(seed)
    reader = Reader(clip).to(device)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(hash((seed, step)))
        rng = random.Random(f"{seed} text {step}")
        edits = [draw_edit(rng) for _ in range(BATCH_SIZE)]
        captions = [draw_caption(rng, edit.original) for edit in edits]
        tokens = tokenize(tokenizer, captions + [edit.edit_prompt for edit in edits]).to(device)
        of_captions = torch.tensor([caption_answers(edit.original) for edit in edits], device=device)
        of_edits = torch.tensor([edit_answers(edit) for edit in edits], device=device)
        return reader.loss(tokens[:BATCH_SIZE], of_captions, reader.caption_head, CAPTION_CLASSES) + reader.loss(
            tokens[BATCH_SIZE:], of_edits, reader.edit_head, EDIT_CLASSES
        )

    config = LoopConfig(num_steps=num_steps, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.99, weight_decay=0.02)
    train(reader, loss_at, config, checkpoint=folder / "text.pt")
    clip.requires_grad_(True)


def domain_words(num_edits: int = 4000) -> list[str]:
    """Returns every word that captions and instructions use."""
    rng = random.Random("vocabulary")
    words: set[str] = set()
    for _ in range(num_edits):
        edit = draw_edit(rng)
        words |= set(re.findall(r"\w+", f"{draw_caption(rng, edit.original)} {edit.edit_prompt}"))
    return sorted(words)


def write_tokenizer(folder: Path, context_length: int = CONTEXT_LENGTH) -> CLIPTokenizer:
    """Builds the tokenizer, with the end token last as CLIP's pooling expects, and saves it in both file formats."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=[]
    )
    learned.train_from_iterator(domain_words(), trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    alphabet = sorted(ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(a + b for a, b in merges)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*symbols, START, END]))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context_length)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return tokenizer
