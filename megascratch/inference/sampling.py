"""How the next token is chosen from its probabilities. Needs no torch, so that a wrong number is refused at once."""

from dataclasses import dataclass

from megascratch.config.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its probabilities.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0: all.
        top_p: only the most likely tokens that together reach this probability (nucleus sampling, Holtzman et al.
            2019, arXiv 1904.09751).
        seed: of the random draws.

    Raises: UserError for a number outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature ({self.temperature}) must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"--top-k ({self.top_k}) must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p ({self.top_p}) must be above 0 and at most 1 (all tokens)")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed ({self.seed}) must be 0 or more and below 2^63")
