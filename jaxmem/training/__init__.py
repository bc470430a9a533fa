"""A model trained in the memory there is: the loop around the step that a recipe stands for."""

from ..io.scalar_writers import JsonLines as JsonLines
from ..io.scalar_writers import ScalarWriter as ScalarWriter
from ..io.scalar_writers import TensorBoard as TensorBoard
from .continual_memory import ContinualMemory as ContinualMemory
from .fresh_weights import fresh as fresh
from .student import DistillOptions as DistillOptions
from .student import distill as distill
from .training_options import TrainingOptions as TrainingOptions
from .training_result import Trained as Trained
from .training_run import run as run
