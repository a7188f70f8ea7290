"""Measurements of memworker beside what else there is: `python -m bench` lists them."""
