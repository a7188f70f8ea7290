"""`python -m memworker`: the same as the command `memworker`."""

from memworker.cli.main import run

if __name__ == "__main__":
    run()
