"""Codecs: one file, one formula. A codec is a frozen dataclass whose `encode` makes a leaf."""

from .activating import Dynamic as Dynamic
from .affine import Affine as Affine
from .bitmask import Bitmask as Bitmask
from .blocks import Blocks as Blocks
from .casting import Cast as Cast
from .chaining import Chain as Chain
from .codebook import Codebook as Codebook
from .coo import Coo as Coo
from .coo import from_bcoo as from_bcoo
from .coo import to_bcoo as to_bcoo
from .csr import Csr as Csr
from .doubling import DoubleQuant as DoubleQuant
from .faking import Fake as Fake
from .faking import export as export
from .floating import Float as Float
from .integer import Int as Int
from .keeping import Keep as Keep
from .kmeans import KMeans as KMeans
from .lowrank import LowRank as LowRank
from .nm import NM as NM
from .planes import Planes as Planes
from .planes import at_bits as at_bits
from .sharing import Shared as Shared
from .smallest import Smallest as Smallest
from .smoothing import Smooth as Smooth
from .summing import Sum as Sum
