from .aio import AsyncMemory as AsyncMemory
from .core import pool_like as pool_like
from .drafts import metadata_json as metadata_json, moment as moment, policy as policy
from .memory import Memory as Memory
from .scope import Scope as Scope
from .transfer import (
    Flaw as Flaw,
    exported as exported,
    import_lines as import_lines,
    is_export as is_export,
)
