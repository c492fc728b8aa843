"""Installs the processors that share attention on a denoiser's layers, and restores its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ip2p.models.architecture import AttentionLayers
from ip2p.p2p.attention import Kernel, SharedAttention, sdpa
from ip2p.p2p.joint_attention import joint_processor

_processors_lock = threading.RLock()
"""A denoiser has one set of processors, so threads that render with it take turns."""


@contextmanager
def shared_attention(
    layers: AttentionLayers, *, cross: bool = False, kernel: Kernel = sdpa
) -> Iterator[SharedAttention]:
    """Installs a processor on every self-attention and joint layer, with `cross` on every cross-attention too.

    Restores the old ones at the end, also on error.
    """
    shared = SharedAttention(kernel)
    processors: list[tuple[Any, Any]] = [(layer, shared) for layer in layers.to_itself]
    processors += [(layer, shared) for layer in layers.to_text if cross]
    watched = set(layers.watched)
    for layer in layers.joint:
        processor = joint_processor(layer, shared, text_first=layers.text_first, is_watched=layer in watched)
        processors.append((layer, processor))
    with _processors_lock:
        before = [(layer, layer.processor) for layer, _ in processors]
        try:
            for layer, processor in processors:
                layer.set_processor(processor)
            yield shared
        finally:
            for layer, processor in before:
                layer.set_processor(processor)
