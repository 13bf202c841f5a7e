"""``python -m hpdval_edge`` is the same program as ``hpedge``."""

from hpdval_edge.cli import main

if __name__ == "__main__":
    main()
