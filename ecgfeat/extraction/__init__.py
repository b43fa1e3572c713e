"""Every image through the frozen network once: the features go into a cache.

`extraction` decides what is asked for, puts it together and tells what was done; `parts` runs the
images through the network part by part.
"""

from ecgfeat.extraction.extraction import Extraction, extract, shard_of

__all__ = ["Extraction", "extract", "shard_of"]
