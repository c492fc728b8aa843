"""Compares the two pictures of a pair: how the frame of the one lies in the other, and which area differs."""

from ip2p.comparing.area import Mask, changed_area
from ip2p.comparing.compositing import composite
from ip2p.comparing.frame import Frame, find_frame

__all__ = ["Frame", "Mask", "changed_area", "composite", "find_frame"]
