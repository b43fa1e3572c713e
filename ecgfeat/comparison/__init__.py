"""Which run is better: several runs on the same test rows, side by side."""

from ecgfeat.comparison.paired import ComparedRun, Comparison, LeftAside, Pair, compare
from ecgfeat.metrics import AreaTest, compare_areas, holm, mcnemar_p_value

__all__ = [
    "AreaTest",
    "ComparedRun",
    "Comparison",
    "LeftAside",
    "Pair",
    "compare",
    "compare_areas",
    "holm",
    "mcnemar_p_value",
]
