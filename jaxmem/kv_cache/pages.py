"""Functions on a pool of pages: who has which, and what they hold. Each gives a changed pool.

All but `usage` and `shrink` can be traced; all but `grow` and `shrink` keep the shapes.
"""

from .page_allocator import alloc as alloc
from .page_allocator import drop as drop
from .page_allocator import hold as hold
from .page_allocator import release as release
from .page_allocator import reserve as reserve
from .page_blobs import put as put
from .page_blobs import put_row as put_row
from .page_blobs import take as take
from .page_blobs import take_row as take_row
from .page_extents import grow as grow
from .page_extents import shrink as shrink
from .page_pool import PagePool as PagePool
from .page_pool import PageStore as PageStore
from .page_precision import fewer_bits as fewer_bits
from .page_sharing import attach as attach
from .page_sharing import share as share
from .page_usage import Usage as Usage
from .page_usage import usage as usage
from .page_windows import release_behind as release_behind
