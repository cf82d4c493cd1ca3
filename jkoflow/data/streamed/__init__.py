"""Tables that are larger than memory: read in blocks, checked, split and laid down in scratch files.

Columns must be plain real numbers. The rows of each part, and their order, are those that the same table in memory
would have.
"""

from jkoflow.data.streamed.load import load_streamed, source_beyond
from jkoflow.data.streamed.sources import ArraySource

__all__ = ["ArraySource", "load_streamed", "source_beyond"]
