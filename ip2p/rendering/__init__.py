"""Makes candidate pairs of edit triplets with a backend, and scores and judges them shard by shard."""

from ip2p.p2p.sampler import render_pairs
from ip2p.rendering.backends import check_backend
from ip2p.rendering.candidates import draw_candidates, draw_spec
from ip2p.rendering.shards import keep_shard, refilter, shard_states, summarise, write_shard

__all__ = [
    "check_backend",
    "draw_candidates",
    "draw_spec",
    "keep_shard",
    "refilter",
    "render_pairs",
    "shard_states",
    "summarise",
    "write_shard",
]
