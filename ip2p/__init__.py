"""ip2p: instruction-based image editing, from captions to a trained and evaluated editor."""

__version__ = "0.1.0"
