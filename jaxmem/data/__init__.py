"""Data of a training run: token stores, documents, packed rows, and an order that resumes."""

from .best_fit import Packing as Packing
from .best_fit import pack as pack
from .documents import Documents as Documents
from .joined_rows import JoinedRows as JoinedRows
from .kept_logits import KeptLogits as KeptLogits
from .kept_logits import write_kept as write_kept
from .loss_difference import difference_sampling as difference_sampling
from .lzw import lzw_decode as lzw_decode
from .lzw import lzw_encode as lzw_encode
from .lzw import lzw_nbytes as lzw_nbytes
from .masked_tokens import MaskedBatches as MaskedBatches
from .packed_rows import Batches as Batches
from .packed_rows import PackedRows as PackedRows
from .replay_reservoir import Reservoir as Reservoir
from .text_reader import read as read
from .token_store import Tokens as Tokens
from .token_writer import write as write
