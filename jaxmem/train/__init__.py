"""Training: losses, transformations of a training step, and optimizers that prune as they train."""

from .chunked_cross_entropy import next_token_loss as next_token_loss
from .chunked_logits import Logits as Logits
from .chunked_logits import chunked as chunked
from .distillation_loss import distillation as distillation
from .dynamic_sparsity import evolve as evolve
from .dynamic_sparsity import rigl as rigl
from .gradient_accumulation import accumulate as accumulate
from .gradient_release import released as released
from .gradient_release import train_state as train_state
from .gradual_pruning import gradual as gradual
from .gradual_pruning import polynomial as polynomial
from .learned_rounding import learn_rounding as learn_rounding
from .lottery_ticket import rewind as rewind
from .movement_pruning import movement as movement
from .movement_pruning import straight_through as straight_through
from .output_losses import divergence as divergence
from .output_losses import kl_divergence as kl_divergence
from .output_losses import relative as relative
from .output_losses import squared as squared
from .preference_losses import odds_ratio as odds_ratio
from .preference_losses import preference as preference
from .remat_policy import Remat as Remat
from .remat_policy import remat as remat
from .scale_tuning import tune as tune
from .token_losses import cross_entropy as cross_entropy
from .token_losses import teacher_divergence as teacher_divergence
