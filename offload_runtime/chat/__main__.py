"""`python -m offload_runtime.chat`."""

import sys

from offload_runtime.chat import main

if __name__ == "__main__":
    sys.exit(main())
