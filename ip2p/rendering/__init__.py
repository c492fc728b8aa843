"""Edit triplets to candidate pairs: prompt-to-prompt on fused attention, scored and judged shard by shard."""

from ip2p.p2p.sampler import RenderedPair, render_pairs
from ip2p.rendering.candidates import draw_candidates, draw_spec
from ip2p.rendering.shards import keep_shard, refilter, sum_counts, summarise, write_shard

__all__ = [
    "RenderedPair",
    "draw_candidates",
    "draw_spec",
    "keep_shard",
    "refilter",
    "render_pairs",
    "sum_counts",
    "summarise",
    "write_shard",
]
