"""A trained model for programs: logits, generated text and held-out loss."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from megascratch.api.run_config import RunConfig, config_of_checkpoint
from megascratch.api.surroundings import hidden_main
from megascratch.api.text_tokenizer import TextTokenizer
from megascratch.config.errors import UserError
from megascratch.config.imports import run_imports
from megascratch.config.settings import DataConfig
from megascratch.data.text.documents import read_records
from megascratch.data.text.jsonl import BadLine
from megascratch.data.text.sources import find_sources
from megascratch.inference.complete import Completion, Stops, complete, prompt_ids
from megascratch.inference.evaluate import DocumentLoss, evaluate_documents
from megascratch.inference.load import load_for_inference
from megascratch.inference.logits import whole_logits
from megascratch.inference.sampling import Sampling
from megascratch.model.chunk import ModelChunk
from megascratch.model.flops import parameters
from megascratch.tokenizer import Tokenizer, TokenizerSource
from megascratch.training.hardware import choose_device


@dataclass(frozen=True)
class Generation:
    """A prompt and what the model wrote after it; `str` of it is both together."""

    prompt: str
    text: str
    """The new text, without what stopped it."""
    tokens: tuple[int, ...]
    """The new ids, with the one that stopped them."""
    stopped_by: str
    """`max_new_tokens`, `end of document`, `stop text` or `stop id`."""
    cropped: bool
    """Whether a part of the text was written without the first tokens, for which the model has no position."""

    def __str__(self) -> str:
        return f"{self.prompt}{self.text}"


class LanguageModel:
    """A model in evaluation mode on one device, with its tokenizer; `load` makes one.

    `module` is the torch module, `tokenizer` the tokenizer, `config` the settings of the run that trained it.
    """

    def __init__(
        self, config: RunConfig, data: DataConfig, module: ModelChunk, tokenizer: Tokenizer
    ) -> None:
        self.config = config
        self.module: nn.Module = module
        self.tokenizer = TextTokenizer(tokenizer)
        self._data = data
        self._chunk = module
        self._ids_of = tokenizer

    @property
    def parameter_count(self) -> int:
        """The number of weights, without padding."""
        return parameters(self._chunk.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._chunk.parameters()).device

    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> Tensor:
        """The logits of the token after each id, on the model's device, in its precision.

        Args:
            ids: a sequence [s], or several of equal length [b, s]; a list, an array or an integer tensor.

        Returns: [s, v] for one sequence, [b, s, v] for several; v is the size of the vocabulary.
        Raises: UserError for sequences of different lengths, numbers that are not whole, an id outside the vocabulary,
            no id at all, or more ids than the model has positions.
        """
        whole = _as_ids(ids)
        batch = whole[None] if whole.dim() == 1 else whole
        found = whole_logits(self._chunk, self._data, batch, self.tokenizer.eod)
        return found[0] if whole.dim() == 1 else found

    @overload
    def generate(
        self,
        prompts: str = "",
        *,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        seed: int = 1234,
        batch_size: int = 8,
        parse_special_tokens: bool = False,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompts: list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        seed: int = 1234,
        batch_size: int = 8,
        parse_special_tokens: bool = False,
    ) -> list[Generation]: ...

    def generate(
        self,
        prompts: str | list[str] | tuple[str, ...] = "",
        *,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        seed: int = 1234,
        batch_size: int = 8,
        parse_special_tokens: bool = False,
    ) -> Generation | list[Generation]:
        """Continues a prompt, or each prompt of a list, with the same text as `megascratch generate`.

        Args:
            prompts: a text, or a list of texts; an empty one begins a document.
            max_new_tokens: most new tokens of each prompt.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: sample from so many of the most likely tokens; 0: from all.
            top_p: sample from the most likely tokens that together have this probability.
            stop: text, or texts, that end a continuation and are removed from it.
            stop_ids: ids that do the same.
            seed: the text of a prompt follows from it and the place of the prompt in the list.
            batch_size: prompts that are computed together; no text depends on it.
            parse_special_tokens: the text of a special token in a prompt becomes that token.

        Returns: a `Generation`, or a list of them.
        Raises: UserError for a number outside its range, and a prompt that has no ids.
        """
        for name, number in {"max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
            if number < 1:
                raise UserError(f"{name} ({number}) must be at least 1")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        sampling = Sampling(temperature, top_k, top_p, seed)
        stops = Stops(self._ids_of, [stop] if isinstance(stop, str) else list(stop), stop_ids)
        ids = []
        for number, text in enumerate(texts, 1):
            ids.append(prompt_ids(self._ids_of, text, number, parse_special_tokens))
        found = []
        for completion in complete(
            self._chunk, self._data, stops, texts, ids, max_new_tokens, sampling, batch_size
        ):
            found.append(_generation(completion))
        return found[0] if isinstance(prompts, str) else found

    def evaluate(
        self,
        texts: str | Sequence[str] = (),
        *,
        files: str | Path | Sequence[str | Path] = (),
        key: str = "text",
        ends: bool = True,
        stride: int | None = None,
        batch_size: int | None = None,
        parse_special_tokens: bool = False,
    ) -> DocumentLoss:
        """The loss over every token of some documents, as `megascratch evaluate` measures it.

        Args:
            texts: a document, or several.
            files: files, folders or patterns with more documents; .jsonl .txt .parquet, also compressed.
            key: of the text in a record.
            ends: whether ends of documents are predicted, too: the model was trained with them.
            stride: new tokens per window of seq_length tokens; default: seq_length.
            batch_size: windows that are computed together.
            parse_special_tokens: the text of a special token becomes that token.

        Returns: `per_token` (nats), `bits_per_byte`, `nats`, `tokens`, `documents`, `text_bytes`.
        Raises: UserError if there is no text, or a file has a record without a text.
        """
        documents = [texts] if isinstance(texts, str) else list(texts)
        documents += _documents([files] if isinstance(files, str | Path) else files, key)
        ids = self.tokenizer.encode(documents, parse_special_tokens)
        return evaluate_documents(
            self._chunk,
            self._data,
            documents,
            ids,
            self.tokenizer.eod,
            ends=ends,
            stride=stride,
            batch_size=batch_size,
        )

    def __repr__(self) -> str:
        return f"LanguageModel({self.parameter_count:,} parameters on {self.device}, {self.tokenizer!r})"


def load(
    path: str | Path,
    device: str | None = None,
    *,
    tokenizer_model: str | Path | None = None,
    imports: str | Sequence[str] = (),
) -> LanguageModel:
    """Loads a trained model with its tokenizer, whatever layout has written it.

    Args:
        path: the folder of a run, of its checkpoints (the newest valid one is loaded) or of one step; also s3://...
        device: `cpu`, `cuda` or `mps`; default: a GPU if there is one.
        tokenizer_model: file of the tokenizer, if it is no longer where the run had it.
        imports: files or modules that register the parts of the model that are not megascratch's own.

    Raises: UserError if there is no valid checkpoint, or the tokenizer is not the one of the training.
    """
    run_imports([imports] if isinstance(imports, str) else imports)
    where = str(path)
    source = TokenizerSource(
        tokenizer_model=None if tokenizer_model is None else str(tokenizer_model)
    )
    config, chunk, tokenizer = load_for_inference(where, choose_device(device, 0), source)
    return LanguageModel(config_of_checkpoint(asdict(config)), config.data, chunk, tokenizer)


def _as_ids(ids: Any) -> Tensor:
    """int64 [s] or [b, s]. Raises: UserError."""
    try:
        whole = torch.as_tensor(ids)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the ids must be whole numbers, in one sequence or in several of equal length: {error}"
        ) from error
    if whole.numel() and (
        whole.is_floating_point() or whole.is_complex() or whole.dtype == torch.bool
    ):
        raise UserError(
            f"the ids must be whole numbers, not {str(whole.dtype).removeprefix('torch.')}"
        )
    if whole.dim() not in (1, 2):
        raise UserError(f"the ids must have the shape [s] or [b, s], not {list(whole.shape)}")
    return whole.long().cpu()


def _generation(completion: Completion) -> Generation:
    found = completion.continuation
    return Generation(
        completion.prompt, completion.text, tuple(found.tokens), found.stopped_by, found.cropped
    )


def _documents(files: Sequence[str | Path], key: str) -> list[str]:
    """The text of every record that is not empty. Raises: UserError, also for a record without a text."""
    if not files:
        return []
    documents = []
    with hidden_main():  # Parquet is read in a process of its own
        for record in read_records(find_sources([str(file) for file in files], None), key, [key]):
            try:
                text = record.text(key)
            except BadLine as reason:
                raise UserError(f"{record.place}: {reason}") from reason
            if text:
                documents.append(text)
    return documents
