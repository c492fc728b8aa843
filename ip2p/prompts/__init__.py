"""Captions to edit triplets: a backend writes, the screen judges, every generation is kept with its reason."""

from ip2p.prompts.answers import write_answers
from ip2p.prompts.backends import check_backend
from ip2p.prompts.format import name_edit_type
from ip2p.prompts.shards import (
    Generation,
    asks_a_model,
    depends_on_earlier_shards,
    num_shards,
    read_triplets,
    shard_states,
    summarise,
    triplets_table,
    try_caption,
    write_shard,
)

__all__ = [
    "Generation",
    "asks_a_model",
    "check_backend",
    "depends_on_earlier_shards",
    "name_edit_type",
    "num_shards",
    "read_triplets",
    "shard_states",
    "summarise",
    "triplets_table",
    "try_caption",
    "write_answers",
    "write_shard",
]
