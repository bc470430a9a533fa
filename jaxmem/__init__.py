"""Fit any language model into the memory you have, and prove it before you rent the machine."""

import gc as _gc

# The imports make 250,000 objects and free few: to look for garbage among them takes .6 s.
_thresholds = _gc.get_threshold()
_gc.set_threshold(10**6)

from . import adapters as adapters
from . import data as data
from . import evaluation as evaluation
from . import interop as interop
from . import models as models
from . import optimizers as optimizers
from . import serving as serving
from . import solvers as solvers
from . import train as train
from . import training as training
from .calibration.activation_ranges import static as static
from .calibration.fisher import fisher as fisher
from .calibration.fisher import gradients as gradients
from .calibration.statistics import Moments as Moments
from .calibration.statistics import stats as stats
from .codecs import NM as NM
from .codecs import Affine as Affine
from .codecs import Bitmask as Bitmask
from .codecs import Blocks as Blocks
from .codecs import Cast as Cast
from .codecs import Chain as Chain
from .codecs import Codebook as Codebook
from .codecs import Coo as Coo
from .codecs import Csr as Csr
from .codecs import Dynamic as Dynamic
from .codecs import Fake as Fake
from .codecs import Float as Float
from .codecs import Inputs as Inputs
from .codecs import Int as Int
from .codecs import Keep as Keep
from .codecs import KMeans as KMeans
from .codecs import LowRank as LowRank
from .codecs import Outputs as Outputs
from .codecs import Planes as Planes
from .codecs import Shared as Shared
from .codecs import Smallest as Smallest
from .codecs import Smooth as Smooth
from .codecs import Sum as Sum
from .codecs import at_bits as at_bits
from .codecs import export as export
from .codecs import from_bcoo as from_bcoo
from .codecs import to_bcoo as to_bcoo
from .compiler.buffer_allocations import Allocations as Allocations
from .compiler.buffer_allocations import allocations as allocations
from .compiler.compile_subprocess import CompileError as CompileError
from .compiler.donation import Donations as Donations
from .compiler.donation import donations as donations
from .compiler.measurement import Measured as Measured
from .compiler.measurement import measured as measured
from .compiler.memory_analysis import Memory as Memory
from .compiler.memory_analysis import memory as memory
from .compiler.memory_breakdown import Breakdown as Breakdown
from .compiler.memory_breakdown import breakdown as breakdown
from .compiler.replicated_activations import replicated as replicated
from .compression.blockwise import encode_by_block as encode_by_block
from .compression.budgeting import budget as budget
from .compression.candidates import techniques as techniques
from .compression.encoding import encode as encode
from .compression.fit import fit as fit
from .compression.fit_options import FitOptions as FitOptions
from .compression.fit_result import Fitted as Fitted
from .compression.iterative import iterated as iterated
from .compression.layer_errors import errors as errors
from .compression.plan import Plan as Plan
from .compression.plan import choose as choose
from .compression.product_speeds import Speeds as Speeds
from .compression.product_speeds import speeds as speeds
from .compression.reporting import Report as Report
from .compression.reporting import report as report
from .compression.sparsity_distribution import erdos_renyi as erdos_renyi
from .compression.sparsity_distribution import sparse as sparse
from .compression.sparsity_distribution import together as together
from .compression.sparsity_distribution import uniform as uniform
from .compression.token_seconds import SecondsLimit as SecondsLimit
from .core.byte_counts import nbytes as nbytes
from .core.codec import Codec as Codec
from .core.known_arguments import Once as Once
from .core.known_arguments import once as once
from .core.leaf import Encoded as Encoded
from .core.leaf import decode as decode
from .core.leaf import is_encoded as is_encoded
from .core.lifting import dot_general as dot_general
from .core.lifting import lift as lift
from .core.paths import merge as merge
from .core.paths import paths as paths
from .core.paths import split as split
from .core.usage import Use as Use
from .core.usage import uses as uses
from .cpu_kernels.library import Native as Native
from .cpu_kernels.library import native as native
from .evaluation.card_result import Card as Card
from .evaluation.model_card import card as card
from .evaluation.perplexity_kl import evaluate as evaluate
from .evaluation.result import Evaluation as Evaluation
from .io.checkpoint import load as load
from .io.checkpoint import save as save
from .kv_cache import pages as pages
from .kv_cache.page_pool import Pages as Pages
from .kv_cache.prefix_cache import Prefixes as Prefixes
from .kv_cache.prefix_results import PrefixHit as PrefixHit
from .kv_cache.prefix_results import PrefixMoves as PrefixMoves
from .kv_cache.prefix_results import PrefixStats as PrefixStats
from .offload.result_store import Reuse as Reuse
from .offload.result_store import ReuseStats as ReuseStats
from .offload.reused_rows import reuse as reuse
from .offload.streamed_weights import from_host as from_host
from .offload.streamed_weights import layers_on_host as layers_on_host
from .parallel import layouts as layouts
from .parallel.mesh import mesh as mesh
from .parallel.pipeline import one_f_one_b as one_f_one_b
from .parallel.pipeline import pipelined as pipelined
from .parallel.placement import Placement as Placement
from .parallel.placement import placement as placement
from .parallel.sharding import shard as shard
from .parallel.sharding import shardings as shardings
from .parallel.sharding import state_shardings as state_shardings
from .parallel.sharding_constraints import constrain as constrain
from .planner.adapter_budget import bits_and_ranks as bits_and_ranks
from .planner.planned import Planned as Planned
from .planner.planner import plan as plan
from .planner.recipe import Recipe as Recipe
from .planner.search import search as search
from .planner.train_and_serve_steps import build as build
from .serving.precision_ladder import Ladder as Ladder
from .serving.precision_ladder import Rung as Rung
from .serving.precision_ladder import RungBytes as RungBytes
from .solvers import GPTQ as GPTQ
from .solvers import HQQ as HQQ
from .solvers import QERA as QERA
from .solvers import RIA as RIA
from .solvers import Basis as Basis
from .solvers import DoubleQuant as DoubleQuant
from .solvers import KQuant as KQuant
from .solvers import Permute as Permute
from .solvers import Prune as Prune
from .solvers import Refit as Refit
from .solvers import Search as Search
from .solvers import SparseGPT as SparseGPT
from .solvers import Wanda as Wanda
from .structured_pruning import fewer as fewer
from .structured_pruning import least_missed as least_missed
from .structured_pruning import least_worth as least_worth
from .structured_pruning import remove_heads as remove_heads
from .structured_pruning import remove_layers as remove_layers
from .structured_pruning import remove_neurons as remove_neurons
from .structured_pruning import remove_width as remove_width
from .train.distillation_loss import distillation as distillation
from .train.dynamic_sparsity import evolve as evolve
from .train.dynamic_sparsity import rigl as rigl
from .train.gradual_pruning import gradual as gradual
from .train.learned_rounding import learn_rounding as learn_rounding
from .train.lottery_ticket import rewind as rewind
from .train.movement_pruning import movement as movement
from .train.movement_pruning import straight_through as straight_through
from .train.output_losses import divergence as divergence
from .train.output_losses import relative as relative
from .train.remat_policy import Remat as Remat
from .train.remat_policy import remat as remat
from .train.scale_tuning import tune as tune

if not _gc.get_freeze_count():  # the objects go to the oldest generation, and none is looked at
    _gc.freeze()
    _gc.unfreeze()
_gc.set_threshold(*_thresholds)


def __getattr__(name: str) -> str:
    """`jaxmem.__version__`, read from the installed package when it is first asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return globals().setdefault("__version__", version("jaxmem"))
