"""The keys of what judges responses: rewards, the evaluator and the endpoint judge. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from apa_cli.config.fields import choice, number, plain
from apa_cli.secrets import public_address


@dataclass(kw_only=True)
class ScorerConfig:
    """One reward."""

    kind: str = choice(
        "model",
        "a sequence-classification model, a Python function, a reward served over HTTP, or a check of final answers",
        choices=("model", "function", "http", "math"),
    )
    path: Optional[str] = plain(
        None, "reward model, or a PEFT adapter of one: local folder, Hub id, or builtin:reviews/reward"
    )
    revision: Optional[str] = plain(None, "Hub branch, tag or commit of the reward model")
    function: Optional[str] = plain(None, "reward function: package.module:name or path/to/file.py:name")
    url: Optional[str] = plain(
        None, "http: endpoint that receives prompts and responses and returns scores: http://HOST:PORT/PATH"
    )
    api_key_env: Optional[str] = plain(
        None, "http: environment variable that holds a bearer token (not the token itself); null = send none"
    )
    answer_column: Optional[str] = plain(
        None,
        "math: column with the right answer: a number, an expression, or a text with #### 42 or \\boxed{42}",
    )
    batch_size: int = number(64, "http: responses per request", minimum=1)
    concurrency: int = number(2, "http: simultaneous requests", minimum=1, maximum=64)
    retries: int = number(8, "http: retries after 429, 5xx or a lost connection", minimum=0, maximum=20)
    timeout_seconds: Optional[float] = number(
        1800.0,
        "longest wait for a call of the reward function, or for an HTTP answer including retries, in seconds; null = "
        "no limit, with the function in the main thread",
        above=0,
    )
    label: Optional[int] = number(
        None,
        "index of the output that is the score, for a model with several; for a classifier, the score is the label's "
        "log-odds",
        minimum=0,
    )
    format: str = choice(
        "auto",
        "what the model reads: chat (its own template), policy (exactly the policy's text, template included), text "
        "(prompt + response), pair (two segments); auto = chat if it has a template",
        choices=("auto", "text", "pair", "chat", "policy"),
    )
    eos: str = choice(
        "auto",
        "EOS after the text: auto = if the response ended (and the tokenizer or template does not add an end itself), "
        "always, never",
        choices=("auto", "always", "never"),
    )
    max_tokens: Optional[int] = number(
        None, "longest text that is scored, in tokens, truncated on the left; null = the model's limit", minimum=1
    )

    @property
    def source(self) -> str:
        """What makes the scores, for people."""
        others = {
            "function": self.function,
            "http": public_address(self.url or ""),
            "math": f"final answers against column {self.answer_column}",
        }
        return others.get(self.kind, self.path) or "nothing"


@dataclass(kw_only=True)
class ComponentConfig(ScorerConfig):
    """One of several rewards."""

    weight: float = number(1.0, "factor of its score; not 0")


@dataclass(kw_only=True)
class SeveralConfig(ScorerConfig):
    """One reward, or the weighted sum of several."""

    components: dict[str, ComponentConfig] = plain(
        {},
        "several rewards instead of one, by name: each has a weight (1) and the keys above: kind, path, function, "
        "url, …",
    )

    @property
    def source(self) -> str:
        if not self.components:
            return super().source
        return " + ".join(f"{part.weight:g} × {name} ({part.source})" for name, part in self.components.items())


@dataclass(kw_only=True)
class RewardConfig(SeveralConfig):
    length_penalty: float = number(
        0.0, "subtracted from the score for each token beyond length_target; 0 = off", minimum=0
    )
    length_target: Optional[int] = number(None, "longest response without a penalty, in tokens", minimum=0)


@dataclass(kw_only=True)
class EvaluatorConfig(SeveralConfig):
    """A second reward that judges and never trains."""

    kind: str = choice(
        "none",
        "separate evaluator that training never sees: a model, a function, one served over HTTP, or a check of answers",
        choices=("none", "model", "function", "http", "math"),
    )

    @property
    def given(self) -> bool:
        return self.kind != "none" or bool(self.components)


@dataclass(kw_only=True)
class JudgeConfig:
    """A chat endpoint that compares a checkpoint's responses with the initial policy's. It never trains."""

    base_url: Optional[str] = plain(
        None, "OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; null = no judge"
    )
    model: Optional[str] = plain(None, "name of the judge model at that endpoint")
    api_key_env: str = plain(
        "OPENAI_API_KEY",
        "environment variable that holds the key (not the key itself); may be unset for a local server",
    )
    criterion: str = plain(
        "The better response serves the prompt better: it is helpful, correct, harmless and well written. "
        "Being longer is no merit by itself.",
        "definition of a better response, as given to the judge",
    )
    prompts: int = number(0, "number of evaluation prompts to judge, counted from the first; 0 = all", minimum=0)
    temperature: Optional[float] = number(0.0, "the judge's sampling temperature; null = not sent", minimum=0)
    seed: Optional[int] = number(0, "the judge's sampling seed, if the server supports it; null = not sent", minimum=0)
    max_answer_tokens: Optional[int] = number(
        1024, "longest answer, in tokens, including a reasoning model's thoughts; null = not sent", minimum=1
    )
    timeout_seconds: float = number(60.0, "longest wait for the server, in seconds per attempt", above=0)
    retries: int = number(4, "retries after 429, 5xx, a timeout or a lost connection", minimum=0, maximum=20)
    concurrency: int = number(4, "simultaneous requests", minimum=1, maximum=256)
    max_tokens_total: Optional[int] = number(
        None, "cost cap: stop before this many tokens, as counted by the server; null = none", minimum=1
    )
    max_cost: Optional[float] = number(None, "cost cap, in the currency of the prices; null = none", above=0)
    price_per_million_input: Optional[float] = number(None, "price of a million input tokens", minimum=0)
    price_per_million_output: Optional[float] = number(None, "price of a million output tokens", minimum=0)
