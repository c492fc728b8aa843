"""The `p2p` backend: renders both images of a pair from captions, with prompt-to-prompt (paper, section 3.1.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ip2p.config import RenderingConfig
from ip2p.p2p.sampler import render_pairs
from ip2p.records import Candidate
from ip2p.rendering.backends import Pictures
from ip2p.rendering.table import DrawnPair
from ip2p.rendering.text_to_image import ReadsCaptions


class PromptToPrompt(ReadsCaptions):
    """Shares attention between the two images of a pair."""

    name = "p2p"
    needs_pictures = False

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[DrawnPair]:
        """Renders pairs."""
        for pair in render_pairs(self.load_pipeline(config), candidates, config):
            yield DrawnPair(pair.original, pair.edited)
