"""Which run is better: several runs on the same test rows, side by side.

`comparing` scores them and every two against each other, `significance` holds the tests, and
`refusing` says how runs differ that can't be compared.
"""

from ecgfeat.comparison.paired import ComparedRun, Comparison, Pair, compare
from ecgfeat.comparison.significance import AreaTest, compare_areas, holm, mcnemar_p_value

__all__ = [
    "AreaTest",
    "ComparedRun",
    "Comparison",
    "Pair",
    "compare",
    "compare_areas",
    "holm",
    "mcnemar_p_value",
]
