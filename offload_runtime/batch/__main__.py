"""`python -m offload_runtime.batch`."""

import sys

from offload_runtime.batch import main

if __name__ == "__main__":
    sys.exit(main())
