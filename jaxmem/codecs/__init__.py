"""Codecs: one file, one formula. A codec is a frozen dataclass whose `encode` makes a leaf."""

from .activating import Dynamic as Dynamic
from .casting import Cast as Cast
from .chaining import Chain as Chain
from .codebook import Codebook as Codebook
from .doubling import DoubleQuant as DoubleQuant
from .faking import Fake as Fake
from .faking import export as export
from .floating import Float as Float
from .integer import Int as Int
from .keeping import Keep as Keep
from .kmeans import KMeans as KMeans
from .lowrank import LowRank as LowRank
from .planes import Planes as Planes
from .planes import at_bits as at_bits
from .summing import Sum as Sum
