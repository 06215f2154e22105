"""Text encoders: prompts into embeddings, once, when a base model is made or read. Needs transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.datasets.conditions import Prompts
from unlearnbench.errors import UsageError
from unlearnbench.models.diffusion import evaluating

SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
BATCH = 64  # prompts per pass


class PromptEncoder(nn.Module):
    """A CLIPTextModel with its tokenizer."""

    def __init__(self, network: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.network, self.tokenizer = network, tokenizer
        config: Any = network.config
        self.width, self.tokens = int(config.hidden_size), int(config.max_position_embeddings)

    @classmethod
    def untrained(cls, prompts: Prompts, recipe: Mapping[str, Any]) -> "PromptEncoder":
        """Return an encoder with random weights, whose vocabulary are the words of some prompts.

        Args:
            prompts: all that it will encode.
            recipe: arguments of a CLIPTextConfig, without those of the vocabulary.
        """
        transformers = _transformers()
        tokenizer = _word_tokenizer(prompts, recipe["max_position_embeddings"])
        special = {"pad": 0, "bos": 1, "eos": 2}
        numbers = {f"{name}_token_id": number for name, number in special.items()}
        config = transformers.CLIPTextConfig(vocab_size=len(tokenizer), **numbers, **recipe)
        return cls(transformers.CLIPTextModel(config), tokenizer)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return the token numbers (n, tokens) of prompts."""
        ids: Tensor = self._tokenize(texts)["input_ids"]
        return ids

    def _tokenize(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )  # fmt: skip

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (n, tokens, D) of token numbers (n, tokens)."""
        embeddings: Tensor = self.network(ids).last_hidden_state
        return embeddings

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (n, tokens, D) of prompts."""
        device = next(self.parameters()).device
        with evaluating(self):
            return torch.cat([self(part) for part in torch.split(self.ids(texts).to(device), BATCH)])

    def last_tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (n, D) of the last token of each text."""
        masks: Tensor = self._tokenize(texts)["attention_mask"]
        last = (masks.sum(dim=1) - 2).clamp(min=0)  # before the end mark
        return self.encode(texts)[torch.arange(len(texts)), last]


def encoder_in(folder: Path) -> PromptEncoder:
    """Return the text encoder in the folder of a pipeline. Raises what transformers does."""
    transformers = _transformers()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    network = transformers.CLIPTextModel.from_pretrained(
        folder / "text_encoder", use_safetensors=True, local_files_only=True, dtype=torch.float32
    )
    return PromptEncoder(network, tokenizer)


def _word_tokenizer(prompts: Prompts, tokens: int) -> Any:
    """Return a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    texts = [*prompts.texts, *(word for concept in prompts.concepts for word in (concept.name, concept.anchor))]
    words = sorted({word for text in texts for word in text.lower().split()})
    numbers = {word: number for number, word in enumerate((*SPECIAL, *words))}
    pad, start, end, unknown = SPECIAL
    words_of = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    words_of.normalizer, words_of.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    words_of.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, numbers[start]), (end, numbers[end])]
    )
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=words_of, model_max_length=tokens, pad_token=pad, bos_token=start, eos_token=end,
        unk_token=unknown,
    )  # fmt: skip


def _transformers() -> Any:
    """Return the module transformers.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "text-to-image models need the package transformers: pip install 'unlearnbench[text]'"
        ) from error
    return transformers
