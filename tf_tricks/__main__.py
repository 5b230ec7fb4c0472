"""`python -m tf_tricks`: see `_cli.py`."""

import sys

from tf_tricks._cli import main

if __name__ == "__main__":
    sys.exit(main())
