"""`python -m eval.bench`: see `eval/bench/coding.py`."""

import sys

from eval.bench.coding import main

sys.exit(main())
