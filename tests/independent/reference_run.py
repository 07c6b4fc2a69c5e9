"""A training run written a second time, as plainly as possible, to compare apa-train with. Imports nothing of ours.

Sampled tokens cannot be drawn again. The run's prompts, responses, scores and shuffled orders are therefore given; the
rest is computed here from the papers' equations: one unpadded row per forward pass, one token at a time, one backward
pass per minibatch, and torch's plain AdamW.

Equations: APA 2306.02231, AWR 1910.00177, PPO 1707.06347, GAE 1506.02438 (11 and 16), the KL-shaped reward, adaptive β
and clipped values 1909.08593, leave-one-out baselines 2402.14740, GRPO 2402.03300 and 2503.20783, GVPO 2504.19599.
"""

import math
import statistics
from collections import defaultdict
from types import SimpleNamespace

import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

DTYPE = torch.float64  # so that a difference is the rounding of the run that is checked, and nothing else


def reference_run(settings, recorded, folder):
    """Train from `settings` (key: value) on `recorded`, one dict per iteration with these entries:

    prompts (texts) and responses (token ids), one per row; scores (None: no score); orders (row numbers), one per pass.
    Returns one dict of metrics per iteration. Weights go to `folder`, before/ and after/ training.
    """
    s = settings
    tokenizer = AutoTokenizer.from_pretrained(s["policy.path"])
    ends = set(tokenizer.convert_tokens_to_ids([tokenizer.eos_token, *s["generation.stop_tokens"]]))
    models = load_models(s)
    save(models, folder / "before")
    groups, rates = [trained_weights(models.policy)], [s["optimizer.learning_rate"]]
    if models.head is not None:
        groups.append(trained_weights(models.trunk, models.head))
        rates.append(s["optimizer.value_learning_rate"])
    optimizer = torch.optim.AdamW(
        [{"params": weights} for weights in groups],
        betas=s["optimizer.betas"],
        eps=s["optimizer.eps"],
        weight_decay=s["optimizer.weight_decay"],
        foreach=False,
        fused=False,
    )
    knob = "objective.kl_coef" if s["objective.name"] in ("ppo", "grpo") else "objective.kl_lambda"  # β or λ
    state = SimpleNamespace(knob=s[knob], error=None, scores=[])  # the error of a steered λ, and every score so far
    lines = []
    for iteration, record in enumerate(recorded):
        warming_up = iteration < s["value.warmup_iterations"]  # the critic alone learns
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (iteration + 1) / s["optimizer.warmup_iterations"])
        rows = [
            SimpleNamespace(prompt=tokenizer(text)["input_ids"], response=ids, raw_score=score, ended=ids[-1] in ends)
            for text, ids, score in zip(record["prompts"], record["responses"], record["scores"], strict=True)
        ]
        look_at(rows, models, s)
        kl = statistics.fmean(sum(row.logprobs) - sum(row.reference) for row in rows)
        set_targets(rows, state, s)
        bounded = bound_targets(rows, state.knob, s) if s["objective.target_bound"] is not None else None
        line = {
            "kl/to_init": kl,
            "reward/mean": statistics.fmean(row.raw_score for row in rows if row.raw_score is not None),
            knob.replace(".", "/"): state.knob,
            **update(rows, record["orders"], models, groups, optimizer, state.knob, warming_up, s),
        }
        if bounded is not None:
            line["objective/bounded_fraction"] = bounded
        if models.head is not None:
            line["value/explained_variance"] = explained_variance([row for row in rows if row.trained])
        lines.append(line)
        if s["objective.kl_target"] is not None and not warming_up:
            steer(state, kl, len(rows), s)
    save(models, folder / "after")
    return lines


# Models


def load_models(s):
    """Policy, reference and the critic's trunk: each a model of its own, whatever they share in the product."""

    def load():
        return AutoModelForCausalLM.from_pretrained(s["policy.path"], dtype=torch.float32).eval()

    def adapted(model):
        if s["policy.adapter.path"] is not None:
            return peft.PeftModel.from_pretrained(model, s["policy.adapter.path"], is_trainable=True)
        if s["policy.adapter.r"] == 0:
            return model
        settings = {"r": s["policy.adapter.r"], "lora_alpha": s["policy.adapter.alpha"], "task_type": "CAUSAL_LM"}
        return peft.get_peft_model(model, peft.LoraConfig(**settings))

    kind, policy, reference, head = s["value.kind"], load(), load(), None
    trunk = load() if kind in ("separate", "adapter") else None
    torch.manual_seed(s["seed"])  # a new adapter starts from random numbers: the policy's first, then the critic's
    policy = adapted(policy)
    trunk = adapted(trunk) if kind == "adapter" else trunk
    if s["policy.adapter.path"] is not None:
        reference = adapted(reference)
    if kind != "none":
        head = torch.nn.Linear(policy.config.hidden_size, 1)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    for model in (policy, reference, trunk, head):
        if model is not None:
            model.to(DTYPE)
    return SimpleNamespace(policy=policy, reference=reference, trunk=trunk, head=head)


def trained_weights(*models):
    return [p for model in models if model is not None for p in model.parameters() if p.requires_grad]


def forward(model, row):
    """Logits and last hidden states at the positions that predict the row's response tokens."""
    output = model(torch.tensor([row.prompt + row.response]), output_hidden_states=True, use_cache=False)
    first = len(row.prompt) - 1
    return output.logits[0, first:-1], output.hidden_states[-1][0, first:-1]


def token_logprobs(logits, row, temperature):
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return [logprobs[t, token] for t, token in enumerate(row.response)]


def token_values(models, row, policy_hidden):
    if models.head is None:
        return []
    hidden = policy_hidden if models.trunk is None else forward(models.trunk, row)[1]
    return list(models.head(hidden)[:, 0])


@torch.no_grad()
def look_at(rows, models, s):
    """Log-probs of policy and reference, and values, before the update: lists of numbers, one per response token."""
    for row in rows:
        logits, hidden = forward(models.policy, row)
        row.logprobs = [x.item() for x in token_logprobs(logits, row, s["generation.temperature"])]
        reference_logits, _ = forward(models.reference, row)
        row.reference = [x.item() for x in token_logprobs(reference_logits, row, s["generation.temperature"])]
        row.values = [x.item() for x in token_values(models, row, hidden)]


def save(models, folder):
    """Trained weights in the files of a run's folder final/."""
    models.policy.save_pretrained(folder)
    if models.trunk is not None:
        adapted = isinstance(models.trunk, peft.PeftModel)
        (models.trunk if adapted else models.trunk.base_model).save_pretrained(folder / "value")
    if models.head is not None:
        (folder / "value").mkdir(exist_ok=True)
        head = {f"linear.{name}": weight.detach() for name, weight in models.head.named_parameters()}
        save_file(head, folder / "value" / "value_head.safetensors")


# From scores to advantages and returns


def set_targets(rows, state, s):
    """Give each row its rewards, advantages and returns. A row without a score is not trained on."""
    for row in rows:
        row.trained = row.raw_score is not None
    scored = [row for row in rows if row.trained]
    state.scores += [row.raw_score for row in scored]
    deviation = statistics.stdev(state.scores) if s["objective.score_scaling"] == "running" else 1.0
    for row in scored:
        score = row.raw_score - (0 if row.ended else s["objective.missing_eos_penalty"])
        score -= s["reward.length_penalty"] * max(0, len(row.response) - s["reward.length_target"])
        score = min(max(score / deviation, -s["objective.score_clip"]), s["objective.score_clip"])
        row.rewards = [0.0] * len(row.response)
        row.rewards[-1] = score
        if s["objective.name"] == "ppo":
            row.rewards = [
                r - state.knob * (p - q) for r, p, q in zip(row.rewards, row.logprobs, row.reference, strict=True)
            ]
    if s["advantage.name"] == "gae":
        for row in scored:
            gae(row, s["advantage.gamma"], s["advantage.gae_lambda"])
    else:
        size = s["rollout.responses_per_prompt"]
        for first in range(0, len(rows), size):
            compare([row for row in rows[first : first + size] if row.trained], state.knob, s)
    if not s["advantage.whiten"]:
        return
    advantages = [a for row in rows if row.trained for a in row.advantages]
    if s["advantage.name"] == "gae":
        mean, variance = statistics.fmean(advantages), statistics.variance(advantages)
    else:  # 0 stays 0: as good as the others of the group
        mean, variance = 0.0, statistics.fmean(a**2 for a in advantages)
    for row in scored:
        row.advantages = [(a - mean) / math.sqrt(variance + 1e-8) for a in row.advantages]


def gae(row, gamma, gae_lambda):
    length = len(row.response)
    row.advantages, row.returns = [0.0] * length, [0.0] * length
    next_value = next_advantage = 0.0
    for t in reversed(range(length)):
        delta = row.rewards[t] + gamma * next_value - row.values[t]
        row.advantages[t] = delta + gamma * gae_lambda * next_advantage
        row.returns[t] = row.advantages[t] + row.values[t]
        next_value, next_advantage = row.values[t], row.advantages[t]


def compare(group, knob, s):
    """Each response's total reward against the group's; a response without others is not trained on."""
    totals = [sum(row.rewards) for row in group]
    for i, row in enumerate(group):
        others = totals[:i] + totals[i + 1 :]
        row.trained = bool(others)
        advantage = totals[i] - baseline(totals, others, knob, s) if others else 0.0
        if s["advantage.group_scale"] and others:
            deviation = statistics.stdev(totals)
            advantage /= deviation + 1e-4 if s["objective.name"] == "grpo" else math.sqrt(deviation**2 + 1e-8)
        row.advantages = [advantage] * len(row.response)


def baseline(totals, others, knob, s):
    match s["advantage.baseline"]:
        case "leave_one_out":
            return statistics.fmean(others)
        case "log_mean_exp":
            return knob * math.log(statistics.fmean(math.exp(other / knob) for other in others))
        case "mean" | "least_squares":
            return statistics.fmean(totals)


def bound_targets(rows, knob, s):
    """Scale a group's targets by one factor into ± bound, or clip a critic's; the share of changed tokens."""
    most, scaled = s["objective.target_bound"] * knob, 0
    if s["advantage.name"] == "gae":
        for row in (row for row in rows if row.trained):
            scaled += sum(abs(a) > most for a in row.advantages)
            row.advantages = [max(-most, min(a, most)) for a in row.advantages]
        return scaled / sum(len(row.response) for row in rows)
    size = s["rollout.responses_per_prompt"]
    for first in range(0, len(rows), size):
        group = [row for row in rows[first : first + size] if row.trained]
        factor = most / max(abs(a) for row in group for a in row.advantages)
        if factor < 1:
            for row in group:
                row.advantages = [a * factor for a in row.advantages]
                scaled += len(row.response)
    return scaled / sum(len(row.response) for row in rows)


# The update


def update(rows, orders, models, groups, optimizer, knob, warming_up, s):
    """Passes of minibatches. objective/* are means over tokens or responses, gradient norms means over minibatches."""
    measured, norms = defaultdict(list), []
    k = s.get("rollout.responses_per_prompt", 1)
    together = k if s["training.shuffle"] == "groups" and s["training.minibatch_size"] % k == 0 else 1
    for order in orders:
        order = [[row for row in rows[i * together : (i + 1) * together] if row.trained] for i in order]
        order = [group for group in order if group]
        for first in range(0, len(order), s["training.minibatch_size"] // together):
            chosen = order[first : first + s["training.minibatch_size"] // together]
            losses, critics = [], []
            for group in chosen:
                looked = [forward(models.policy, row) for row in group]
                logprobs = [
                    token_logprobs(logits, row, s["generation.temperature"])
                    for row, (logits, _) in zip(group, looked, strict=True)
                ]
                losses += policy_losses(group, logprobs, knob, measured, s)
                for row, (_, hidden) in zip(group, looked, strict=True):
                    critics += [
                        value_loss(value, row, t, s) for t, value in enumerate(token_values(models, row, hidden))
                    ]
            measured["objective/policy_loss"] += [loss.item() for loss in losses]
            total = sum(losses) / len(losses)
            if critics:
                measured["objective/value_loss"] += [critic.item() for critic in critics]
                total = total + s["objective.value_coef"] * sum(critics) / len(critics)
            optimizer.zero_grad()
            total.backward()
            if warming_up:
                for weight in groups[0]:
                    weight.grad = None
            norms.append([clip_gradients(weights, s["optimizer.max_grad_norm"]) for weights in groups])
            optimizer.step()
    metrics = {name: statistics.fmean(numbers) for name, numbers in measured.items()}
    if "objective/target_residual" in metrics:
        metrics["objective/target_residual"] **= 0.5  # root of the mean square
    names = ("optim/grad_norm", "optim/value_grad_norm")
    metrics |= {name: statistics.fmean(column) for name, column in zip(names, zip(*norms, strict=True), strict=False)}
    if warming_up:
        metrics["optim/grad_norm"] = math.nan
    return metrics


def policy_losses(group, logprobs, knob, measured, s):
    """Of each token, or of each response where that is what the objective works on."""
    if s["objective.name"] == "grpo":
        return [grpo_loss(row, own, knob, measured, s) for row, own in zip(group, logprobs, strict=True)]
    units = []  # log-probs of π_θ, rollout and initial policy, and the advantage
    for row, own in zip(group, logprobs, strict=True):
        if s["objective.level"] == "sequence":
            units.append((sum(own), sum(row.logprobs), sum(row.reference), row.advantages[0]))
        else:
            units += zip(own, row.logprobs, row.reference, row.advantages, strict=True)
    if s["advantage.baseline"] == "least_squares":
        mean = sum(new - initial for new, _, initial, _ in units) / len(units)  # with its gradient, as published
        units = [(new, old, initial + mean, advantage) for new, old, initial, advantage in units]
    return [policy_loss(*unit, knob, measured, s) for unit in units]


def policy_loss(new, old, initial, advantage, knob, measured, s):
    if s["objective.name"] == "apa":
        delta = s["objective.huber_delta"]
        distance = new - (old if s["objective.anchor"] == "rollout" else initial) - advantage / knob
        measured["objective/target_residual"].append(distance.item() ** 2)
        if delta is not None and abs(distance.item()) > delta:
            return 2 * delta * distance.abs() - delta**2
        return distance**2
    if s["objective.name"] == "awr":
        return -math.exp(advantage / knob) * new
    return clipped_surrogate(new, old, advantage, measured, s)


def clipped_surrogate(new, old, advantage, measured, s):
    ratio = torch.exp(new - old)
    clipped = torch.clamp(ratio, 1 - s["objective.clip_range"], 1 + s["objective.clip_range"])
    measured["objective/clip_fraction"].append((-advantage * clipped > -advantage * ratio).item())
    return max(-advantage * ratio, -advantage * clipped)


def grpo_loss(row, logprobs, knob, measured, s):
    """One response: the surrogate and the KL estimate, over its tokens or a constant."""
    total = 0.0
    for t, new in enumerate(logprobs):
        d = new - row.reference[t]
        total = total + clipped_surrogate(new, row.logprobs[t], row.advantages[t], measured, s)
        total = total + knob * (torch.exp(-d) - 1 + d)
    return total / (s["objective.length_divisor"] or len(row.response))


def value_loss(value, row, t, s):
    error = (value - row.returns[t]) ** 2
    if s["objective.name"] == "ppo":
        c = s["objective.value_clip_range"]
        clipped = row.values[t] + torch.clamp(value - row.values[t], -c, c)
        error = max(error, (clipped - row.returns[t]) ** 2)
    return 0.5 * error


def clip_gradients(weights, most):
    """Scale the gradients of these weights down to a norm of `most` together; their norm before."""
    gradients = [w.grad for w in weights if w.grad is not None]
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    for g in gradients:
        g.mul_(min(1.0, most / (norm + 1e-6)))
    return norm


def steer(state, kl, responses, s):
    """Move β or λ towards the target KL."""
    target = s["objective.kl_target"]
    if s["objective.name"] == "ppo":
        error = min(max(kl / target - 1, -0.2), 0.2)
        state.knob *= 1 + error * responses / s["objective.kl_horizon"]
        return
    error = min(max(math.log(kl / target), -1.0), 1.0) if kl > 0 else -1.0
    change = error - state.error if state.error is not None else 0.0
    step = min(max(s["objective.kl_gain"] * error + s["objective.kl_damping"] * change, -0.5), 0.5)
    knob = state.knob * math.exp(step)
    state.knob = min(max(knob, s["objective.kl_lambda_min"]), s["objective.kl_lambda_max"])
    state.error = error


def explained_variance(rows):
    returns = [x for row in rows for x in row.returns]
    errors = [r - v for row in rows for r, v in zip(row.returns, row.values, strict=True)]
    return 1 - statistics.pvariance(errors) / statistics.pvariance(returns)
