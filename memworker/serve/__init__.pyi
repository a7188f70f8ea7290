from . import server as server
from .options import (
    KEY_VARIABLE as KEY_VARIABLE,
    ServeOptions as ServeOptions,
    read_key as read_key,
)
from .service import Service as Service
