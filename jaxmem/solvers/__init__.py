"""Solvers: one file, one algorithm that finds better numbers for a codec; each is a codec."""

from .basis import Basis as Basis
from .doubling import DoubleQuant as DoubleQuant
from .gptq import GPTQ as GPTQ
from .hqq import HQQ as HQQ
from .permuting import Permute as Permute
from .pruning import RIA as RIA
from .pruning import Prune as Prune
from .pruning import Wanda as Wanda
from .qera import QERA as QERA
from .refit import Refit as Refit
from .searching import Search as Search
from .sparsegpt import SparseGPT as SparseGPT
