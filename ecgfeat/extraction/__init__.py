"""Every image through the frozen network once: the features go into a cache.

``job`` decides what is asked for and puts it together, ``computing`` runs the images through the
network part by part, ``summary`` tells what was done.
"""

from ecgfeat.extraction.job import extract, shard_of
from ecgfeat.extraction.summary import Extraction

__all__ = ["Extraction", "extract", "shard_of"]
