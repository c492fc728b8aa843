"""The `p2p` backend: renders both images of a pair from captions, with prompt-to-prompt (paper, section 3.1.1)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ip2p.config import RenderingConfig
from ip2p.images import encode_image
from ip2p.p2p.sampler import render_pairs
from ip2p.records import Candidate
from ip2p.rendering.backends import Pictures
from ip2p.rendering.table import EncodedPair
from ip2p.rendering.text_to_image import ReadsCaptions


class PromptToPrompt(ReadsCaptions):
    """Shares attention between the two images of a pair."""

    name = "p2p"
    needs_pictures = False

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[EncodedPair]:
        """Renders pairs; the codec works on other threads, so that the next batch does not wait for it."""
        encode = partial(encode_image, image_format=config.image_format, quality=config.image_quality)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pairs = render_pairs(self.load_pipeline(config), candidates, config)
            encoded = [pool.map(encode, (pair.original, pair.edited)) for pair in pairs]
            yield from (EncodedPair(*files) for files in encoded)
