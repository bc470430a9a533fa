"""What weights are fed, what an error costs, and which texts say so."""

from .chosen_texts import choose_texts as choose_texts
from .mixed_texts import mix_texts as mix_texts
