from . import machine as machine, peak_flops as peak_flops
from .admission import Admission as Admission, Ticket as Ticket
from .agreement import compare_precision as compare_precision
from .aio import AsyncEmbeddingPool as AsyncEmbeddingPool
from .arena import shared_folder as shared_folder
from .bridge import Awaited as Awaited, Bridge as Bridge
from .budget import parse_bytes as parse_bytes
from .cgroups import memory_groups as memory_groups
from .choice import (
    Auto as Auto,
    PrecisionGiven as PrecisionGiven,
    choose as choose,
    is_auto as is_auto,
    settled as settled,
)
from .echo import EchoEncoder as EchoEncoder, EchoLoader as EchoLoader
from .encoder import open_session as open_session
from .engine import Identity as Identity
from .meter import WorkTotals as WorkTotals
from .opening import (
    Background as Background,
    LatePool as LatePool,
    PoolOptions as PoolOptions,
    PoolUse as PoolUse,
    borrowed_or_own as borrowed_or_own,
    refuse_absent as refuse_absent,
)
from .outside import Outside as Outside, System as System
from .plan import Costs as Costs, estimate_tokens as estimate_tokens
from .pool import (
    DEFAULT_MAX_TEXT_BYTES as DEFAULT_MAX_TEXT_BYTES,
    DEFAULT_MODEL as DEFAULT_MODEL,
    EmbeddingPool as EmbeddingPool,
    TextKind as TextKind,
)
from .requests import Embedded as Embedded, Floats as Floats, unstorable as unstorable
from .reranker import (
    Ranked as Ranked,
    Reranker as Reranker,
    paired as paired,
    sigmoid as sigmoid,
)
from .rows import TokenRows as TokenRows
from .scheduler import QueueEntry as QueueEntry
from .tokenize import (
    TokenCounter as TokenCounter,
    Tokenization as Tokenization,
    Tokenizer as Tokenizer,
)
from .tuning import Trial as Trial, tune as tune
from .worker import SlotResults as SlotResults, SlotTexts as SlotTexts
