"""A folder kept in step with a table: documents added, updated, and removed when they are gone.

::

    looking: files ─► catalogue: known by stamp? ─► read whole ─► known by hash? ─► document
                                                                                       │
    removal of what is gone ◄─ writing: commits ◄─ loop, pool ◄─ vectors reused ◄──────┘

The table itself is what is known of the folder: each row names the folder, its path and the
hash of the file. So whatever ends a run, the next one compares and does what is left.
"""
