"""Measures the scores that a config asks for, on the pixels that are stored; each model is loaded once per process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ip2p.config import ScoringConfig
from ip2p.models import loading
from ip2p.models.texts import tokenizer_lock
from ip2p.records import EditTriplet, PairScores
from ip2p.scoring import SCORES, check_settings
from ip2p.scoring.score import Batch, Measure

SMALLEST_STEP = 1e-6
"""A shorter step between two embeddings has no direction: its similarity is (close to) zero."""


class PairScorer:
    """Scores pairs of images with one CLIP; embeds each caption once."""

    def __init__(self, clip: loading.ClipModel, *, batch_size: int) -> None:
        self.clip = clip
        self.batch_size = batch_size
        self._captions: dict[str, Tensor] = {}

    def score(
        self, triplets: Sequence[EditTriplet], originals: Sequence[Image.Image], edited: Sequence[Image.Image]
    ) -> list[PairScores]:
        """Returns the four similarities of each triplet and its two RGB images."""
        if not triplets:
            return []
        rows = Batch(triplets, originals, edited, self).similarities.tolist()
        return [PairScores(original=a, edited=b, direction=c, image=d) for a, b, c, d in rows]

    def similarities(self, triplets: Sequence[EditTriplet], embeddings: Tensor) -> Tensor:
        """Returns the (N, 4) cosines of pairs with (2 N, D) unit embeddings of their images."""
        original_texts = self._embed_texts([triplet.original_prompt for triplet in triplets])
        edited_texts = self._embed_texts([triplet.edited_prompt for triplet in triplets])
        original_images, edited_images = embeddings.chunk(2)
        return similarities(original_images, edited_images, original_texts, edited_texts)

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns (N, D) unit embeddings in float32 on the CPU."""
        embeddings = []
        with torch.inference_mode(), ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(images), self.batch_size):
                pixels = torch.stack(list(pool.map(self.clip.preprocess, images[start : start + self.batch_size])))
                encoded = self.clip.model.encode_image(pixels.to(self.clip.device), normalize=True)
                embeddings.append(encoded.float().cpu())
        return torch.cat(embeddings)

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        new = list(dict.fromkeys(text for text in texts if text not in self._captions))
        with torch.inference_mode():
            for start in range(0, len(new), self.batch_size):
                captions = new[start : start + self.batch_size]
                with tokenizer_lock:
                    tokens = self.clip.tokenize(captions)
                embeddings = self.clip.model.encode_text(tokens.to(self.clip.device), normalize=True).float().cpu()
                self._captions.update(zip(captions, embeddings, strict=True))
        return torch.stack([self._captions[text] for text in texts])


def similarities(
    original_images: Tensor, edited_images: Tensor, original_texts: Tensor, edited_texts: Tensor
) -> Tensor:
    """Turns (N, D) unit embeddings into (N, 4) cosines: original, edited, direction (0 if a step is 0), image."""
    image_step, text_step = edited_images - original_images, edited_texts - original_texts
    return torch.stack(
        [
            (original_images * original_texts).sum(-1),
            (edited_images * edited_texts).sum(-1),
            F.cosine_similarity(image_step, text_step, dim=-1, eps=SMALLEST_STEP),
            (original_images * edited_images).sum(-1),
        ],
        dim=-1,
    )


def embeddings_as_bytes(embeddings: Tensor) -> list[bytes]:
    """Turns (2 N, D) embeddings of originals and edited images into the float16 bytes of each pair's two."""
    pairs: np.ndarray = torch.stack(embeddings.chunk(2), dim=1).half().numpy()
    return [pair.tobytes() for pair in pairs]


@dataclass(frozen=True, slots=True)
class Scorer:
    """Measures every score that a config asks for."""

    clip: PairScorer
    measures: Mapping[str, Measure]
    """By the score's name."""

    def score(
        self, triplets: Sequence[EditTriplet], originals: Sequence[Image.Image], edited: Sequence[Image.Image]
    ) -> tuple[list[PairScores], list[bytes]]:
        """Returns the scores and the `embeddings_as_bytes` of each triplet and its two RGB images."""
        if not triplets:
            return [], []
        batch = Batch(triplets, originals, edited, self.clip)
        columns = [measure(batch) for measure in self.measures.values()]
        scores = [PairScores.from_values(zip(self.measures, row, strict=True)) for row in zip(*columns, strict=True)]
        return scores, embeddings_as_bytes(batch.embeddings)


def load_scorer(config: ScoringConfig) -> Scorer:
    """Loads the models of a config's scores. ValueError if `scoring.further` names a setting that no score reads."""
    check_settings(config)
    measures = {
        name: score.prepare(config) for name, score in SCORES.items() if score.prepare and score.is_wanted(config)
    }
    return Scorer(load_pair_scorer(config), measures)


def load_pair_scorer(config: ScoringConfig) -> PairScorer:
    """Loads CLIP alone, for the four similarities."""
    clip = loading.load_clip(config.clip_model, config.clip_pretrained, device=config.device)
    return PairScorer(clip, batch_size=config.batch_size)
