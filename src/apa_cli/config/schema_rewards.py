"""The keys of what judges responses: rewards, the evaluator and the endpoint judge. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from apa_cli.config.fields import choice, mapping, number, text
from apa_cli.secrets import public_address


@dataclass(kw_only=True)
class ScorerConfig:
    """One reward."""

    kind: str = choice(
        "model",
        "a sequence-classification model, a Python function, or a reward served over HTTP",
        choices=("model", "function", "http"),
    )
    path: Optional[str] = text(
        None, "reward model, or PEFT adapter of one: local folder, Hub id, or builtin:reviews/reward"
    )
    revision: Optional[str] = text(None, "Hub branch, tag or commit of the reward model")
    function: Optional[str] = text(None, "reward function: package.module:name or path/to/file.py:name")
    url: Optional[str] = text(None, "http: what takes prompts and responses and answers scores: http://HOST:PORT/PATH")
    api_key_env: Optional[str] = text(
        None, "http: environment variable with a bearer token (not the token itself); null = none is sent"
    )
    batch_size: int = number(64, "http: responses a request", minimum=1)
    concurrency: int = number(2, "http: requests at a time", minimum=1, maximum=64)
    retries: int = number(8, "http: further tries after 429, 5xx or a lost connection", minimum=0, maximum=20)
    timeout_seconds: Optional[float] = number(
        1800.0,
        "longest wait for a call of the reward function, or for an answer over HTTP with all tries, seconds; "
        "null = for ever, the function in the main thread",
        above=0,
    )
    label: Optional[int] = number(
        None,
        "which output is the score, for a model with several; of classes it is the label's log-odds against the others",
        minimum=0,
    )
    format: str = choice(
        "auto",
        "what it reads: chat (its own template), policy (the policy's very text, template and all), "
        "text (prompt + response), pair (two segments); auto = chat if it has a template",
        choices=("auto", "text", "pair", "chat", "policy"),
    )
    eos: str = choice(
        "auto",
        "EOS behind what it reads: auto = where the response ended (not where its tokenizer or template writes an end "
        "by itself), always, never",
        choices=("auto", "always", "never"),
    )
    max_tokens: Optional[int] = number(None, "longest text scored, cut on the left; null = the model's own", minimum=1)

    @property
    def source(self) -> str:
        """What makes the scores, for people."""
        return {"function": self.function, "http": public_address(self.url or "")}.get(
            self.kind, self.path
        ) or "nothing"


@dataclass(kw_only=True)
class ComponentConfig(ScorerConfig):
    """One of several rewards."""

    weight: float = number(1.0, "what its score is multiplied by; not 0")


@dataclass(kw_only=True)
class SeveralConfig(ScorerConfig):
    """One reward, or the weighted sum of several."""

    components: dict[str, ComponentConfig] = mapping(
        {},
        "several rewards in place of one, by name: weight (1), and kind, path, function, url … as above, of each",
    )

    @property
    def source(self) -> str:
        if not self.components:
            return super().source
        return " + ".join(f"{part.weight:g} × {name} ({part.source})" for name, part in self.components.items())


@dataclass(kw_only=True)
class RewardConfig(SeveralConfig):
    length_penalty: float = number(0.0, "taken from the score for each token beyond length_target; 0 = off", minimum=0)
    length_target: Optional[int] = number(None, "longest response that costs nothing, tokens", minimum=0)


@dataclass(kw_only=True)
class EvaluatorConfig(SeveralConfig):
    """A second reward that judges and never trains."""

    kind: str = choice(
        "none",
        "separate evaluator that training never sees: a model, a function, or served over HTTP",
        choices=("none", "model", "function", "http"),
    )

    @property
    def given(self) -> bool:
        return self.kind != "none" or bool(self.components)


@dataclass(kw_only=True)
class JudgeConfig:
    """A chat endpoint that compares a checkpoint's responses with the initial policy's. It never trains."""

    base_url: Optional[str] = text(
        None, "OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; null = no judge"
    )
    model: Optional[str] = text(None, "name of the judging model at that endpoint")
    api_key_env: str = text(
        "OPENAI_API_KEY",
        "environment variable that holds the key (not the key itself); may be unset for a local server",
    )
    criterion: str = text(
        "The better response serves the prompt better: it is helpful, correct, harmless and well written. "
        "Being longer is no merit by itself.",
        "what better means, in the words that the judge is told",
    )
    prompts: int = number(0, "how many of the evaluation prompts are judged, the first ones; 0 = all", minimum=0)
    temperature: Optional[float] = number(0.0, "the judge's sampling temperature; null = not sent", minimum=0)
    seed: Optional[int] = number(0, "the judge's sampling seed, where the server heeds it; null = not sent", minimum=0)
    max_answer_tokens: Optional[int] = number(
        1024, "longest answer, tokens, a reasoning model's thoughts included; null = not sent", minimum=1
    )
    timeout_seconds: float = number(60.0, "longest wait for the server, seconds, each try", above=0)
    retries: int = number(4, "further tries after 429, 5xx, a timeout or a lost connection", minimum=0, maximum=20)
    concurrency: int = number(4, "requests at a time", minimum=1, maximum=256)
    max_tokens_total: Optional[int] = number(
        None, "cost cap: stop before this many tokens, as the server counts them; null = none", minimum=1
    )
    max_cost: Optional[float] = number(None, "cost cap, in the currency of the prices; null = none", above=0)
    price_per_million_input: Optional[float] = number(None, "price of a million tokens read", minimum=0)
    price_per_million_output: Optional[float] = number(None, "price of a million tokens written", minimum=0)
