"""`python -m pipeline` is the command `lemon`, and each of its workers."""

import sys

from pipeline.records.processes import die_with_launcher

if __name__ == "__main__":
    die_with_launcher()

    from pipeline.cli import main

    sys.exit(main())
