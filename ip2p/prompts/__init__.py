"""Captions to edit triplets: a language model writes, the parser judges, every generation is kept with its reason."""

from ip2p.prompts.parse import name_edit_type
from ip2p.prompts.write import Generation, num_shards, read_triplets, triplets_table, write_shard

__all__ = ["Generation", "name_edit_type", "num_shards", "read_triplets", "triplets_table", "write_shard"]
