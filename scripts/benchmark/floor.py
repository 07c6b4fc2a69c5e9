"""The bare parts: the least that an iteration of these sizes can be, as a plain script.

generate: transformers' generate with the dynamic cache on the left-padded batch; nothing is recorded.
score, forward: the reward model, the reference and the critic, without gradients.
update: for each minibatch the policy's forward and backward, the critic's, gradient clipping and one AdamW step.
No tensor of a whole vocabulary at prompt positions; sequences are sorted by length, right-padded (so that causal
attention needs no mask) and cut into groups whose padded size is the fastest of BUDGETS, tried in the warm-up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark.jobs import LEARNING_RATE, Job
from benchmark.worker import Stepper

BUDGETS = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384, 32768)}  # padded tokens of one forward


def groups(lengths: list[int], budget: int) -> list[list[int]]:
    """Row numbers, longest first, as many a group as fit the budget when padded to its longest; at least one."""
    split: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if split and lengths[split[-1][0]] * (len(split[-1]) + 1) <= budget:
            split[-1].append(row)
        else:
            split.append([row])
    return split


def run(job: Job, folder: Path, device: str, stepper: Stepper) -> None:
    import torch
    from torch.nn import functional as F
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).to(device)
    reference = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).to(device)
    critic = AutoModel.from_pretrained(folder / "policy", dtype=torch.float32).to(device)
    value_head = torch.nn.Linear(job.shape.hidden, 1, device=device)
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32).to(device)
    for model in (policy, reference, critic, reward):
        model.eval()
    critic_parameters = [*critic.parameters(), *value_head.parameters()]
    optimizers = {
        "policy": torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, fused=True),
        "critic": torch.optim.AdamW(critic_parameters, lr=LEARNING_RATE, fused=True),
    }
    batches = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    T = job.response_tokens
    eos, pad = policy.config.eos_token_id, policy.config.pad_token_id
    budget = {"score": 4096, "forward": 4096, "update": 4096}

    def autocast() -> Any:
        return torch.autocast(device, dtype=torch.bfloat16, enabled=job.precision == "bf16")

    def generate(prompts: list[list[int]]) -> torch.Tensor:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)  # (B, P)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        whole = policy.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=T, min_new_tokens=T,
            eos_token_id=eos, pad_token_id=pad,
        )  # fmt: skip
        return whole[:, width:]  # (B, T)

    def rectangle(rows: list[list[int]]) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)  # (n, L)

    def at_responses(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(n, T, H): the positions that predict the last T tokens of each row."""
        positions = lengths[:, None] - T - 1 + torch.arange(T, device=device)
        return hidden[torch.arange(len(lengths), device=device)[:, None], positions]

    def logprobs(model: Any, rows: list[list[int]], ids: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor([len(row) for row in rows], device=device)
        hidden = model.base_model(input_ids=rectangle(rows), use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(at_responses(hidden, lengths))  # (n, T, V)
        return -F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)

    def values(rows: list[list[int]]) -> torch.Tensor:
        lengths = torch.tensor([len(row) for row in rows], device=device)
        hidden = critic(input_ids=rectangle(rows), use_cache=False).last_hidden_state
        return value_head(at_responses(hidden, lengths)).squeeze(-1).float()  # (n, T)

    def score(rows: list[list[int]]) -> torch.Tensor:
        hidden = reward.base_model(input_ids=rectangle(rows), use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        return reward.score(hidden[torch.arange(len(rows), device=device), last])

    @torch.no_grad()
    def passed(part: Callable[[list[int]], torch.Tensor], lengths: list[int], size: int) -> torch.Tensor:
        pieces = [(rows, part(rows)) for rows in groups(lengths, size)]
        whole = torch.empty(len(lengths), *pieces[0][1].shape[1:], device=device)
        for rows, piece in pieces:
            whole[rows] = piece.float()
        return whole

    def train(who: str, loss: Callable[[list[int]], torch.Tensor], rows: list[int], lengths: list[int]) -> None:
        for part in groups([lengths[row] for row in rows], budget["update"]):
            chosen = [rows[index] for index in part]
            with autocast():
                part_loss = loss(chosen)
            (part_loss * (len(chosen) / len(rows))).backward()
        parameters = [p for group in optimizers[who].param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizers[who].step()
        optimizers[who].zero_grad(set_to_none=True)

    def iterate(prompts: list[list[int]], *, trial: bool) -> None:
        with autocast():
            responses = stepper.timed("generate", generate)(prompts)
        sequences = [p + r for p, r in zip(prompts, responses.tolist(), strict=True)]
        lengths = [len(row) for row in sequences]

        def policy_part(rows: list[int], model: Any = policy) -> torch.Tensor:
            return logprobs(model, [sequences[r] for r in rows], responses[rows])

        def reference_part(rows: list[int]) -> torch.Tensor:
            return policy_part(rows, reference)

        def value_part(rows: list[int]) -> torch.Tensor:
            return values([sequences[r] for r in rows])

        def score_part(rows: list[int]) -> torch.Tensor:
            return score([sequences[r] for r in rows])

        if trial:
            for name, part in (("score", score_part), ("forward", reference_part)):
                with autocast():
                    budget[name] = _fastest(
                        stepper, BUDGETS[device], lambda size, part=part: passed(part, lengths, size)
                    )
        with autocast():
            scores = stepper.timed("score", passed)(score_part, lengths, budget["score"])  # (B, 1)
            sampled = stepper.timed("forward", passed)(reference_part, lengths, budget["forward"])  # (B, T)
            first = stepper.timed("forward value", passed)(value_part, lengths, budget["forward"])
        advantages = scores - first
        advantages = (advantages - advantages.mean()) / advantages.std()

        def policy_loss(rows: list[int]) -> torch.Tensor:
            ratio = (policy_part(rows) - sampled[rows]).exp()
            gain = advantages[rows]
            return torch.max(-gain * ratio, -gain * ratio.clamp(0.8, 1.2)).mean()

        def value_loss(rows: list[int]) -> torch.Tensor:
            return 0.5 * (value_part(rows) - scores[rows]).square().mean()

        if trial:
            rows = torch.randperm(len(sequences))[: job.minibatch].tolist()

            def step(size: int) -> None:
                budget["update"] = size
                train("policy", policy_loss, rows, lengths)

            budget["update"] = _fastest(stepper, BUDGETS[device], step)
        for _ in range(job.passes):
            for rows in torch.randperm(len(sequences)).split(job.minibatch):
                stepper.timed("update", train)("policy", policy_loss, rows.tolist(), lengths)
                stepper.timed("update value", train)("critic", value_loss, rows.tolist(), lengths)

    stepper.ready()
    for number, batch in enumerate(batches):
        iterate([row["ids"] for row in batch], trial=number == 0)
        if number == 0:
            stepper.reset()
            print(f"groups of {budget} padded tokens", flush=True)
        stepper.done(stepper.take())


def _fastest(stepper: Stepper, sizes: Sequence[int], attempt: Callable[[int], Any]) -> int:
    """The budget whose second attempt takes least."""
    seconds = {}
    for size in sizes:
        attempt(size)
        start = stepper.now()
        attempt(size)
        seconds[size] = stepper.now() - start
    return min(seconds, key=seconds.__getitem__)
