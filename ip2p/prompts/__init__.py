"""Captions to edit triplets: a language model writes, the parser judges, every generation is kept with its reason."""

from ip2p.prompts.write import num_shards, read_triplets, write_shard

__all__ = ["num_shards", "read_triplets", "write_shard"]
