"""Renders edit triplets as candidate pairs by prompt-to-prompt, and scores and judges them shard by shard."""

from ip2p.p2p.sampler import render_pairs
from ip2p.rendering.candidates import draw_candidates, draw_spec
from ip2p.rendering.shards import keep_shard, refilter, shard_states, summarise, write_shard

__all__ = [
    "draw_candidates",
    "draw_spec",
    "keep_shard",
    "refilter",
    "render_pairs",
    "shard_states",
    "summarise",
    "write_shard",
]
