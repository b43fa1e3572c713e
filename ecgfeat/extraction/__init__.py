"""Every image through the frozen network once: the features go into a cache.

``job`` decides what is asked for and puts it together, ``computing`` runs the images through the
network part by part, ``summary`` tells what was done.
"""

from ecgfeat.extraction.extraction import Extraction, extract, shard_of

__all__ = ["Extraction", "extract", "shard_of"]
