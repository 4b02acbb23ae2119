"""`python -m offload_runtime.doctor`."""

import sys

from offload_runtime.doctor import main

if __name__ == "__main__":
    sys.exit(main())
