"""How often a draft's proposals are accepted by its target: `python -m offload_runtime.measure_acceptance`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from offload_runtime.measure_acceptance import main

if __name__ == "__main__":
    sys.exit(main())
