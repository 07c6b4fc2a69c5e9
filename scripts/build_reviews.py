"""Rebuild the built-in task `reviews`: a tiny policy, a reward model and prompts, all from the review grammar.

1. Prompts are sampled from the grammar and split into training and held-out ones.
2. The policy, a two-layer Llama, learns the grammar's reviews of mixed mood (supervised; each ends with the end token).
3. Pairs of reviews are labelled by a noisy judge: the grammar's sentiment decides with probability
   sigmoid(SHARPNESS x difference), and a share FLIPS of the labels is turned round. Some pairs set a review against a
   spoilt copy (repeated, cut off, shuffled), which always loses.
4. The reward model, started from the policy, learns the pairs (Bradley-Terry). Its scores are scaled to a standard
   deviation of 1 over the policy's own reviews.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional

from apa_cli.assets import grammar

Model, Tokens = transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
OUTPUT = Path("src/apa_cli/assets/reviews")
MAX_NEW_TOKENS = 32
BATCH = 64
SEED, THREADS = 0, 1  # the result depends on both
SHARPNESS, FLIPS, SPOILT_SHARE = 2.5, 0.05, 0.2
TRAIN_PROMPTS, EVAL_PROMPTS, PREFERENCES = 2000, 256, 2000


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two reviews of one prompt; `chosen` is what the noisy judge preferred."""

    prompt: str
    chosen: str
    rejected: str

    @property
    def margin(self) -> float:
        """Sentiment of `chosen` above that of `rejected`; negative where the noisy judge erred."""
        chosen, rejected = grammar.sentiment([self.prompt] * 2, [self.chosen, self.rejected])
        return chosen - rejected


def build_tokenizer() -> Tokens:
    """One token per word or punctuation mark; decoding attaches punctuation to the word before it."""
    words = [*SPECIAL_TOKENS.values(), *grammar.vocabulary()]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, SPECIAL_TOKENS["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.Sequence([decoders.WordPiece("##", cleanup=True), decoders.Replace(" :", ":")])
    settings = {"padding_side": "left", "model_max_length": 128}
    return Tokens(tokenizer_object=backend, **SPECIAL_TOKENS, **settings)


def build_config(tokenizer: Tokens, **kwargs: Any) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.05, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **kwargs,
    )  # fmt: skip


def sample_prompts(rng: random.Random) -> tuple[list[str], list[str]]:
    """Training and held-out prompts, all different."""
    prompts: dict[str, None] = {}
    while len(prompts) < TRAIN_PROMPTS + EVAL_PROMPTS:
        prompts[grammar.sample_prompt(rng)] = None
    unique = list(prompts)
    return unique[:TRAIN_PROMPTS], unique[TRAIN_PROMPTS:]


def encode(tokenizer: Tokens, rows: list[tuple[str, str]]) -> tuple[dict[str, Any], torch.Tensor]:
    """Left-padded ids and mask of prompt + response + end token, and a (B, L) mask of what follows the prompt."""
    texts = [f"{prompt} {response}{tokenizer.eos_token}" for prompt, response in rows]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    lengths = torch.tensor([len(ids) for ids in tokenizer([prompt for prompt, _ in rows])["input_ids"]])  # (B,)
    position = batch["attention_mask"].cumsum(dim=1)  # (B, L) 1 at the first real token
    return dict(batch), position > lengths[:, None]


def train(model: Model, batches: list, loss_of: Callable, *, learning_rate: float, title: str) -> None:
    """AdamW with a short warm-up and a cosine down to 0; one step for each of `batches`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    steps, warmup = len(batches), 50
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    model.train()
    for batch in track(batches, title):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def sample_policy(policy: Model, tokenizer: Tokens, prompts: list[str]) -> list[str]:
    """One response to each prompt at temperature 1."""
    responses: list[str] = []
    for start in track(range(0, len(prompts), 256), "Sampling         "):
        batch = tokenizer(prompts[start : start + 256], padding=True, return_tensors="pt", return_token_type_ids=False)
        ids = policy.generate(**batch, max_new_tokens=MAX_NEW_TOKENS)[:, batch["input_ids"].shape[1] :]
        responses += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return responses


def spoil(response: str, rng: random.Random) -> str:
    """A copy of `response` that no reader would prefer: repeated, cut off, shuffled, stuttering, run on or empty."""
    words = grammar.tokenize(response)
    fault = rng.choice(["repeat", "cut", "cut", "shuffle", "stutter", "no end", "swap", "empty"])
    if fault == "repeat":
        sentence = response.split(".")[0] + "."
        words = grammar.tokenize(response + f" {sentence}" * rng.randint(1, 2))
    elif fault == "cut" and len(words) > 1:
        words = words[: rng.randrange(1, len(words))]
    elif fault == "shuffle":
        rng.shuffle(words)
    elif fault == "stutter" and words:
        at = rng.randrange(len(words))
        words[at:at] = [words[at]] * rng.randint(1, 4)
    elif fault == "no end":
        words = [word for word in words if word not in ".!"]
    elif fault == "swap":
        for at in rng.sample(range(len(words)), k=min(len(words), rng.randint(1, 3))):
            words[at] = rng.choice(grammar.vocabulary())
    else:
        words = []
    return grammar.detokenize(words)


def judge(rows: list[tuple[str, str, str]], rng: random.Random, *, spoilt_share: float) -> list[Pair]:
    """Noisy preferences between the two responses of each (prompt, response, response)."""
    pairs = []
    for prompt, left, right in rows:
        if left == right:
            continue
        if rng.random() < spoilt_share:
            spoilt = spoil(left, rng)
            if not grammar.parses(spoilt):  # a cut can leave a whole review
                pairs.append(Pair(prompt=prompt, chosen=left, rejected=spoilt))
            continue
        pair = Pair(prompt=prompt, chosen=left, rejected=right)
        keeps = rng.random() < 1 / (1 + math.exp(-SHARPNESS * pair.margin))
        if keeps == (rng.random() < FLIPS):
            pair = Pair(prompt=prompt, chosen=right, rejected=left)
        pairs.append(pair)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=OUTPUT, help="folder to write (default: %(default)s)")
    add("--policy-steps", type=int, default=1500, help=f"of {BATCH} reviews (default: %(default)s)")
    add("--reward-pairs", type=int, default=12000, help="pairs to learn from (default: %(default)s)")
    options = parser.parse_args()
    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()  # transformers' own, for saving
    train_prompts, eval_prompts = sample_prompts(rng)
    held_out = set(eval_prompts)
    tokenizer = build_tokenizer()

    def fresh_prompt() -> str:
        return next(prompt for prompt in iter(lambda: grammar.sample_prompt(rng), None) if prompt not in held_out)

    # Policy
    policy = transformers.LlamaForCausalLM(build_config(tokenizer))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    policy.generation_config = transformers.GenerationConfig(do_sample=True, max_new_tokens=MAX_NEW_TOKENS, **ids)

    def response_loss(rows: list[tuple[str, str]]) -> torch.Tensor:
        """Mean cross-entropy of the response tokens, end token included, in nats."""
        inputs, mask = encode(tokenizer, rows)
        logits = policy(**inputs).logits[:, :-1]
        return functional.cross_entropy(logits[mask[:, 1:]], inputs["input_ids"][:, 1:][mask[:, 1:]])

    corpus = [
        [(prompt, grammar.sample_response(prompt, rng)) for prompt in (fresh_prompt() for _ in range(BATCH))]
        for _ in track(range(options.policy_steps), "Writing reviews  ")
    ]
    train(policy, corpus, response_loss, learning_rate=3e-3, title="Training policy  ")
    written = [(prompt, grammar.sample_response(prompt, rng)) for prompt in eval_prompts * 4]

    # Preferences: half between the policy's own reviews, half between reviews of every mood
    own_prompts = [train_prompts[i % TRAIN_PROMPTS] for i in range(options.reward_pairs // 2)]
    own = sample_policy(policy, tokenizer, [p for p in own_prompts for _ in range(2)])
    rows = list(zip(own_prompts, own[::2], own[1::2], strict=True))
    preferences = judge(rows, rng, spoilt_share=0.0)[:PREFERENCES]
    for prompt in (fresh_prompt() for _ in range(options.reward_pairs // 2)):
        left, right = (grammar.sample_response(prompt, rng, rng.gauss(0.0, 1.5)) for _ in range(2))
        rows.append((prompt, left, right))
    rng.shuffle(rows)
    pairs = judge(rows, rng, spoilt_share=SPOILT_SHARE)

    # Reward model
    reward = transformers.LlamaForSequenceClassification(build_config(tokenizer, num_labels=1))
    reward.model.load_state_dict(policy.model.state_dict())

    def pair_loss(pairs: list[Pair]) -> torch.Tensor:
        """Bradley-Terry loss, with a small pull of the scores' mean towards 0."""
        inputs, _ = encode(tokenizer, [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs])
        chosen, rejected = reward(**inputs).logits[:, 0].chunk(2)
        return -functional.logsigmoid(chosen - rejected).mean() + 0.01 * (chosen + rejected).square().mean()

    @torch.no_grad()
    def score(rows: list[tuple[str, str]]) -> list[float]:
        parts = [encode(tokenizer, rows[start : start + 256])[0] for start in range(0, len(rows), 256)]
        return [value for inputs in parts for value in reward(**inputs).logits[:, 0].tolist()]

    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)] * 2
    train(reward, batches, pair_loss, learning_rate=1e-3, title="Training reward  ")

    # Measurements, on held-out prompts
    asked = eval_prompts * 8
    answers = sample_policy(policy, tokenizer, asked)
    answered = list(zip(asked, answers, strict=True))
    with torch.no_grad():
        reward.score.weight /= statistics.stdev(score(answered))
        loss = float(response_loss(written))
    scores, exact = score(answered), grammar.sentiment(asked, answers)
    measured = {
        "policy loss, held out (nats a token)": loss,
        "sampled reviews that parse": statistics.mean(grammar.parses(answer) for answer in answers),
        "sampled reviews that differ": len(set(answers)) / len(answers),
        "sentiment of the policy's reviews, mean": statistics.mean(exact),
        "reward score, mean": statistics.mean(scores),
        "correlation of reward score and sentiment": statistics.correlation(scores, exact),
    }

    # Files
    options.output.mkdir(parents=True, exist_ok=True)
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(options.output / name)
        tokenizer.save_pretrained(options.output / name)
        (options.output / name / "model.safetensors").chmod(0o644)  # written for its owner alone
    files = {"prompts": [{"prompt": prompt} for prompt in train_prompts],
             "eval_prompts": [{"prompt": prompt} for prompt in eval_prompts],
             "preferences": [vars(pair) for pair in preferences]}  # fmt: skip
    for name, lines in files.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (options.output / f"{name}.jsonl").write_text(text, encoding="utf-8")
    build = {
        "settings": {"seed": SEED, "policy_steps": options.policy_steps, "reward_pairs": options.reward_pairs,
                     "sharpness": SHARPNESS, "flips": FLIPS, "threads": THREADS},
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "measured": {name: round(value, 4) for name, value in measured.items()},
    }  # fmt: skip
    text = json.dumps(build, indent=2)
    (options.output / "build.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
