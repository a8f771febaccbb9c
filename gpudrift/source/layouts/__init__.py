"""The layouts embeddings come in, and how each becomes one flat run of floats.

``layout_of`` tells a file's layout from its schema; the reader knows none of them by name. Plain lists of floats are
decoded without a copy; the others copy a batch.
"""

from gpudrift.source.layouts.elements import ENCODINGS, POOLINGS, Encoding
from gpudrift.source.layouts.finding import LAYOUTS, READABLE, layout_of
from gpudrift.source.layouts.records import Decoded, Layout, Positions

__all__ = ["ENCODINGS", "LAYOUTS", "POOLINGS", "READABLE", "Decoded", "Encoding", "Layout", "Positions", "layout_of"]
