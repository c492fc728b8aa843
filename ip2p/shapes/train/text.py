"""The text tower, taught to read before it is frozen: linear heads on its states answer what a text says.

Two objects never share a shape, so "which colour and size has the star, if any" for each shape describes a scene fully.
The heads are thrown away; what stays is that every attribute and every binding lies open in the states that the
denoiser and CLIP's picture tower are trained against.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ip2p.shapes.language import EDIT_TYPES, SceneEdit, describe, draw_caption, draw_edit
from ip2p.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene
from ip2p.shapes.train.loop import LoopConfig, train

BATCH_SIZE = 96
_COLOURS, _SIZES, _BACKGROUNDS = list(COLOURS), list(SIZES), list(BACKGROUNDS)
CAPTION_CLASSES = [len(_COLOURS) + 1, len(_SIZES) + 1] * len(SHAPES) + [len(_BACKGROUNDS)]
EDIT_CLASSES = [
    len(EDIT_TYPES),
    len(SHAPES) + 1,
    len(_BACKGROUNDS) + 1,
    len(_SIZES) + 1,
    len(_COLOURS) + 1,
    len(SHAPES) + 1,
]


def caption_answers(scene: Scene) -> list[int]:
    """For each shape its colour and size (the last class: none of that shape), then the background."""
    found = {shape: (colour, size) for size, colour, shape in describe(scene).objects}
    answers = []
    for shape in SHAPES:
        colour, size = found.get(shape, (None, None))
        answers += [_index(_COLOURS, colour), _index(_SIZES, size)]
    return [*answers, _BACKGROUNDS.index(scene.background)]


def edit_answers(edit: SceneEdit) -> list[int]:
    """Type of the edit, the shape it is about, what it sets: background, size, colour, shape (last class: nothing)."""
    before, after = edit.original, edit.edited
    new = set(after.objects) - set(before.objects)
    old = set(before.objects) - set(after.objects)
    about = next(iter(old), None)
    made = next(iter(new), None)
    kind = edit.edit_type
    sets = {"colour": {"colour"}, "shape": {"shape"}, "size": {"size"}}.get(kind, {"colour", "shape", "size"})
    pick = {
        name: getattr(made, name) if made is not None and name in sets else None for name in ("size", "colour", "shape")
    }
    return [
        EDIT_TYPES.index(kind),
        _index(SHAPES, about.shape if about is not None else None),
        _index(_BACKGROUNDS, after.background if kind == "background" else None),
        _index(_SIZES, pick["size"]),
        _index(_COLOURS, pick["colour"]),
        _index(SHAPES, pick["shape"]),
    ]


def _index(names: list[str] | tuple[str, ...], name: str | None) -> int:
    return len(names) if name is None else names.index(name)


class Reader(nn.Module):
    """A CLIP's text tower with linear heads."""

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.clip = clip
        width = clip.ln_final.normalized_shape[0]
        self.caption_head = nn.Linear(width, sum(CAPTION_CLASSES))
        self.edit_head = nn.Linear(width, sum(EDIT_CLASSES))
        clip.visual.requires_grad_(False)

    def states(self, tokens: Tensor) -> Tensor:
        """(N, T) token ids to (N, T, width) normalised states."""
        x = self.clip.token_embedding(tokens) + self.clip.positional_embedding
        states: Tensor = self.clip.ln_final(self.clip.transformer(x, attn_mask=self.clip.attn_mask))
        return states

    def loss(self, tokens: Tensor, answers: Tensor, head: nn.Linear, classes: list[int]) -> Tensor:
        """Mean cross-entropy of all questions, asked at the end token and at a padding position."""
        states = self.states(tokens)
        end = tokens.argmax(-1)
        last = tokens.shape[1] - 1
        padding = end + (torch.rand(len(end), device=end.device) * (last - end + 1)).long()
        rows = torch.arange(len(end), device=end.device)
        logits = head(torch.cat([states[rows, end], states[rows, padding]]))
        parts = logits.split(classes, -1)
        twice = torch.cat([answers, answers])
        return torch.stack([F.cross_entropy(part, twice[:, k]) for k, part in enumerate(parts)]).mean()


def train_text_tower(
    folder: Path, clip: open_clip.CLIP, tokenizer: CLIPTokenizer, *, seed: int, num_steps: int, device: str = "cpu"
) -> None:
    """Teaches the text tower of `clip` in place; the projection is left to the contrast that follows."""
    torch.manual_seed(seed)
    reader = Reader(clip).to(device)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(hash((seed, step)))
        rng = random.Random(f"{seed} text {step}")
        edits = [draw_edit(rng) for _ in range(BATCH_SIZE)]
        captions = [draw_caption(rng, edit.original) for edit in edits]
        asked = [edit.edit_prompt for edit in edits]
        tokens = tokenizer(captions + asked, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(
            device
        )
        of_captions = torch.tensor([caption_answers(edit.original) for edit in edits], device=device)
        of_edits = torch.tensor([edit_answers(edit) for edit in edits], device=device)
        return reader.loss(tokens[:BATCH_SIZE], of_captions, reader.caption_head, CAPTION_CLASSES) + reader.loss(
            tokens[BATCH_SIZE:], of_edits, reader.edit_head, EDIT_CLASSES
        )

    config = LoopConfig(num_steps=num_steps, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.99, weight_decay=0.02)
    train(reader, loss_at, config, checkpoint=folder / "text.pt", name="text")
    clip.requires_grad_(True)


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
