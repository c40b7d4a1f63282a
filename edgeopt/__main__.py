"""``python -m edgeopt`` is ``edgeopt``."""

from __future__ import annotations

import sys

from edgeopt.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
