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
STEPS, LR = 300, 2e-3  # of training


class PromptEncoder(nn.Module):
    """A CLIPTextModel with its tokenizer."""

    def __init__(self, network: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.network, self.tokenizer = network, tokenizer
        config: Any = network.config
        self.width, self.tokens = int(config.hidden_size), int(config.max_position_embeddings)

    @classmethod
    def trained(cls, prompts: Prompts, recipe: Mapping[str, Any]) -> "PromptEncoder":
        """Return an encoder of the words of some prompts, trained to tell which concept each of them names.

        From the last word on, a linear layer on each token classifies the concept, its anchor, or neither.

        Args:
            prompts: all that it will encode.
            recipe: arguments of a CLIPTextConfig, without those of the vocabulary.
        """
        transformers = _transformers()
        tokenizer = _word_tokenizer(prompts, recipe["max_position_embeddings"])
        numbers = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = transformers.CLIPTextConfig(vocab_size=len(tokenizer), **numbers, **recipe)
        encoder = cls(transformers.CLIPTextModel(config), tokenizer)
        encoder._train(prompts)
        return encoder

    def _train(self, prompts: Prompts) -> None:
        texts, targets = _named(prompts)
        ids, last = self._tokenized(texts)
        after = torch.arange(self.tokens) >= last[:, None]
        head = nn.Linear(self.width, max(targets) + 1)
        wanted = torch.tensor(targets)[:, None].expand(-1, self.tokens)[after]
        weights = [*self.network.train().parameters(), *head.parameters()]
        optimizer = torch.optim.Adam(weights, lr=LR)
        annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            loss = nn.functional.cross_entropy(head(self(ids)[after]), wanted)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            annealing.step()
        self.eval().requires_grad_(False)

    def _tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token numbers (n, tokens) of texts, and the places (n,) of their last words."""
        found = self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )  # fmt: skip
        last: Tensor = (found["attention_mask"].sum(dim=1) - 2).clamp(min=0)  # before the end mark
        return found["input_ids"], last

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (n, tokens, D) of token numbers (n, tokens)."""
        embeddings: Tensor = self.network(ids).last_hidden_state
        return embeddings

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the embeddings (n, tokens, D) of texts, and the places (n,) of their last words."""
        ids, last = self._tokenized(texts)
        with evaluating(self):
            return torch.cat([self(part) for part in torch.split(ids, BATCH)]), last


def _named(prompts: Prompts) -> tuple[list[str], list[int]]:
    """Return all prompts and names, and the number of what each names: a concept, an anchor, or nothing."""
    names = list(
        dict.fromkeys([*(c.name for c in prompts.concepts), *(c.anchor for c in prompts.concepts if c.anchor)])
    )
    texts, targets = list(names), list(range(len(names)))
    for c, concept in enumerate(prompts.concepts):
        labels = [*prompts.training(c), *prompts.paraphrases(c)]
        anchor = prompts.anchor(c)
        if anchor is not None and anchor > len(prompts.concepts):
            texts, targets = [*texts, prompts.texts[anchor]], [*targets, names.index(concept.anchor)]
        texts, targets = [*texts, *(prompts.texts[label] for label in labels)], [*targets, *[c] * len(labels)]
    rest = ["", *(prompts.texts[label] for label in prompts.unrelated_labels)]
    return [*texts, *rest], [*targets, *[len(names)] * len(rest)]


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
    hush: Any = transformers.utils.logging.disable_progress_bar
    hush()  # on files of some kilobytes
    return transformers
