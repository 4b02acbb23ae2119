"""`python -m offload_runtime.serve`."""

import sys

from offload_runtime.serve import main

if __name__ == "__main__":
    sys.exit(main())
