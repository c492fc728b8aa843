"""Edit triplets to candidate pairs: prompt-to-prompt on fused attention, scored and judged shard by shard."""

from ip2p.rendering.candidates import refilter, sum_counts, summarise, write_shard
from ip2p.rendering.draws import draw_candidates, draw_spec
from ip2p.rendering.sampler import RenderedPair, render_pairs

__all__ = [
    "RenderedPair",
    "draw_candidates",
    "draw_spec",
    "refilter",
    "render_pairs",
    "sum_counts",
    "summarise",
    "write_shard",
]
