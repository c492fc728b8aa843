"""The four CLIP similarities of a pair (paper, section 3.1.2), on the pixels that are stored."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ip2p.models.loading import ClipModel
from ip2p.models.texts import tokenizer_lock
from ip2p.records import EditTriplet, PairScores
from ip2p.scoring.nsfw import NsfwHead

SMALLEST_STEP = 1e-6
"""Steps between embeddings shorter than this have no direction: their similarity is (close to) zero."""


class PairScorer:
    """Scores pairs of images with one CLIP; embeds each caption once."""

    def __init__(self, clip: ClipModel, *, batch_size: int, nsfw: NsfwHead | None = None) -> None:
        self.clip = clip
        self.batch_size = batch_size
        self.nsfw = nsfw
        self._captions: dict[str, Tensor] = {}

    def score(
        self,
        triplets: Sequence[EditTriplet],
        original_images: Sequence[Image.Image],
        edited_images: Sequence[Image.Image],
    ) -> list[PairScores]:
        """One `PairScores` per triplet and its two RGB images."""
        if not triplets:
            return []
        images = self._embed_images([*original_images, *edited_images])
        original_texts = self._embed_texts([triplet.original_prompt for triplet in triplets])
        edited_texts = self._embed_texts([triplet.edited_prompt for triplet in triplets])
        original, edited = images.chunk(2)
        rows = similarities(original, edited, original_texts, edited_texts).tolist()
        unsafe = [None] * len(rows) if self.nsfw is None else self.nsfw(images).view(2, -1).amax(0).tolist()
        return [
            PairScores(original=a, edited=b, direction=c, image=d, nsfw=worse, embeddings=both)
            for (a, b, c, d), worse, both in zip(rows, unsafe, _as_bytes(images), strict=True)
        ]

    def embed(self, originals: Sequence[Image.Image], edited: Sequence[Image.Image]) -> list[bytes]:
        """`PairScores.embeddings` of pairs."""
        return _as_bytes(self._embed_images([*originals, *edited]))

    def _embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        found = []
        with torch.inference_mode(), ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(images), self.batch_size):
                pixels = torch.stack(list(pool.map(self.clip.preprocess, images[start : start + self.batch_size])))
                found.append(self.clip.model.encode_image(pixels.to(self.clip.device), normalize=True).float().cpu())
        return torch.cat(found)

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        new = _unique(text for text in texts if text not in self._captions)
        with torch.inference_mode():
            for start in range(0, len(new), self.batch_size):
                some = new[start : start + self.batch_size]
                with tokenizer_lock:
                    tokens = self.clip.tokenize(some)
                embedded = self.clip.model.encode_text(tokens.to(self.clip.device), normalize=True).float().cpu()
                self._captions.update(zip(some, embedded, strict=True))
        return torch.stack([self._captions[text] for text in texts])


def similarities(
    original_images: Tensor, edited_images: Tensor, original_texts: Tensor, edited_texts: Tensor
) -> Tensor:
    """(N, D) unit embeddings to (N, 4) cosines: original, edited, direction, image. No step has direction 0."""
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


def _as_bytes(images: Tensor) -> list[bytes]:
    """(2 N, D) embeddings of N original and N edited images to both embeddings of every pair."""
    both: np.ndarray = torch.stack(images.chunk(2), dim=1).half().numpy()
    return [each.tobytes() for each in both]


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
