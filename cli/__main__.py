"""``python -m ecgfeat.cli``."""

from . import main

if __name__ == "__main__":
    main()
