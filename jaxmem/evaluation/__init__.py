"""How good a model still is: tasks scored item by item, and what compression changed in them."""

from .card_comparison import compare_cards as compare_cards
from .confidence_calibration import ConfidenceCalibration as ConfidenceCalibration
from .confidence_calibration import calibration_of as calibration_of
from .flipped_bits import flip_bits as flip_bits
from .group_fairness import GroupGaps as GroupGaps
from .group_fairness import group_gaps as group_gaps
from .membership_attack import Membership as Membership
from .membership_attack import membership as membership
from .packed_losses import document_losses as document_losses
from .paired_answers import Flips as Flips
from .paired_answers import answer_flips as answer_flips
from .path_gradients import integrated_gradients as integrated_gradients
from .published_sets import published_tasks as published_tasks
from .shapley_values import kernel_shap as kernel_shap
from .task import Task as Task
from .task_files import read_task as read_task
from .task_files import write_task as write_task
from .task_scores import TaskScores as TaskScores
from .task_scores import score_task as score_task
