from . import records as records
from .bert_like import read_bert as read_bert
from .bf16 import processor_has_bf16 as processor_has_bf16
from .cache import cache_home as cache_home
from .calibration import measuring_texts as measuring_texts
from .head import apply_layers as apply_layers, read_layers as read_layers
from .hub import offline_switch as offline_switch
from .onnx_file import GraphWriter as GraphWriter, tensor_info as tensor_info
from .ready import (
    ModelListing as ModelListing,
    check_choice as check_choice,
    describe_model as describe_model,
    list_models as list_models,
    obstacles as obstacles,
    pull_model as pull_model,
    ready_model as ready_model,
    ready_reranker as ready_reranker,
    verify_model as verify_model,
)
from .spec import (
    DEFAULT_MODEL as DEFAULT_MODEL,
    Pooling as Pooling,
    Precision as Precision,
    ReadyModel as ReadyModel,
)
from .weights import BertLayer as BertLayer, BertWeights as BertWeights
