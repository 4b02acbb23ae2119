"""`python -m offload_runtime.measure_acceptance`."""

import sys

from offload_runtime.measure_acceptance import main

if __name__ == "__main__":
    sys.exit(main())
