"""Solvers: one file, one algorithm that finds better numbers for a codec; each is a codec."""

from . import pruning_scores as pruning_scores
from .double_quant import DoubleQuant as DoubleQuant
from .gptq import GPTQ as GPTQ
from .hqq import HQQ as HQQ
from .k_quant import KQuant as KQuant
from .nm_permutation import Permute as Permute
from .pruning import RIA as RIA
from .pruning import Prune as Prune
from .pruning import Wanda as Wanda
from .qera import QERA as QERA
from .range_search import Search as Search
from .refit import Refit as Refit
from .shared_basis import Basis as Basis
from .sparsegpt import SparseGPT as SparseGPT
