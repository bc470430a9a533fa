"""Many prompts answered at once, out of one pool of pages."""

from .answer import Answer as Answer
from .answer import Piece as Piece
from .engine import Engine as Engine
from .generation_request import GenerationRequest as GenerationRequest
from .prompt_file import Refusal as Refusal
from .prompt_file import read_requests as read_requests
from .prompt_order import depth_first as depth_first
