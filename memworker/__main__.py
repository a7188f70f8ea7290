"""`python -m memworker`: the same as the command `memworker`."""

import sys

# `-m` puts the working directory on the path; see `memworker.interpreters`. First of all, for
# what is imported below is looked for there too.
from memworker.interpreters import our_path

sys.path[:] = our_path()

from memworker.cli.main import run  # noqa: E402 - see above

if __name__ == "__main__":
    run()
