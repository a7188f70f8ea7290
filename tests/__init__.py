"""The tests. They mirror the modules, and use real parts: processes, files, models."""

PATIENCE_S = 240.0
"""How long a test waits for what must come, however busy the machine is: only a hang takes longer.

Less than pytest's own timeout, so that whoever waits can say for what.
"""
