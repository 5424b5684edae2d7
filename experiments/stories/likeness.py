"""How near infills are to a reference in meaning: their tokens as vectors, matched by cosine.

``embedding_f1`` takes the vectors that the project's language model has of words, and needs nothing else.
``bert_score`` takes those of an encoder of Hugging Face in the context of the whole text (Zhang et al. 2020).
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, PyTree
from ml_collections import ConfigDict

from experiments import hugging_face
from experiments.errors import ConfigError
from experiments.stories.words import Vocabulary
from rtbjax.metrics.text import Embedded, greedy_f1

Likeness = Callable[[str, Sequence[str]], float]  # Of a reference and its infills, their mean.
AT_ONCE = 64  # Texts in a forward pass.


def make(config: ConfigDict, vocabulary: Vocabulary, causal_params: PyTree | None) -> dict[str, Likeness]:
    """What a config has, by name; ``causal_params`` are the weights of the project's, where there are any.

    Raises:
      UserError: see `BertScore`.
    """
    likenesses: dict[str, Likeness] = {}
    if causal_params is not None:
        likenesses["embedding_f1"] = by_words(np.asarray(causal_params["tokens"]["embedding"]), vocabulary)
    bert = config.eval.bert_score
    if bert.model:
        likenesses["bert_score"] = BertScore(bert.model, bert.layer, bert.baseline)
    return likenesses


def by_words(table: Float[np.ndarray, "V D"], vocabulary: Vocabulary) -> Likeness:
    """The F1 of texts by the vectors of their tokens in a table."""

    def embedded(text: str) -> Embedded:
        tokens = vocabulary.encode(text)
        return Embedded(table[tokens], np.ones(len(tokens), bool))

    return lambda reference, infills: greedy_f1(embedded(reference), list(map(embedded, infills)))


class BertScore:
    """BERTScore's F1, without weights of rarity."""

    def __init__(self, model: str, layer: int, baseline: float):
        """Reads the model and its tokenizer.

        Args:
          model: a folder (config, tokenizer files, safetensors) or hub id of an encoder.
          layer: whose output is taken, from 1; the package bert-score lists the best of each model.
          baseline: the F1 of unrelated texts, which the package lists too: it becomes 0, and 1 stays 1.

        Raises:
          UserError: torch or transformers are missing.
          DataError: no such folder or hub id, or none that holds an encoder.
          ConfigError: the model has no such layer.
        """
        torch, transformers = hugging_face.packages("eval.bert_score.model")
        with hugging_face.reading("eval.bert_score.model", model, "no encoder") as folder:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        layers = network.config.num_hidden_layers
        if not 1 <= layer <= layers:
            raise ConfigError(f"config.eval.bert_score.layer must lie in 1..{layers}, got {layer}.")
        self._torch, self._layer, self._baseline = torch, layer, baseline
        self._network, _ = hugging_face.ready(network, torch)

    def __call__(self, reference: str, infills: Sequence[str]) -> float:
        ours, *theirs = self._embedded([reference, *infills])
        return (greedy_f1(ours, theirs) - self._baseline) / (1.0 - self._baseline)

    def _embedded(self, texts: Sequence[str]) -> list[Embedded]:
        found = []
        for first in range(0, len(texts), AT_ONCE):
            batch = self._tokenizer(
                list(texts[first : first + AT_ONCE]),
                padding=True,
                return_tensors="pt",
                return_special_tokens_mask=True,
            ).to(self._network.device)
            special = batch.pop("special_tokens_mask").cpu().numpy().astype(bool)
            text = batch["attention_mask"].cpu().numpy().astype(bool)
            with self._torch.inference_mode():
                states = self._network(**batch, output_hidden_states=True).hidden_states[self._layer]
            rows = zip(states.float().cpu().numpy(), special, text, strict=True)
            found += [Embedded(vectors[of], ~marks[of]) for vectors, marks, of in rows]
        return found
