"""What is measured: the sizes of each job, who takes part, and the settings that all share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SEED = 0
LEARNING_RATE = 1e-6
KL_COEF = 0.05
GROUP = 8  # responses to one prompt, for GRPO and for an objective without a critic
LORA_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder with random weights: speed and memory do not depend on what they are."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    family: str = "gpt_neox"  # or llama
    kv_heads: int | None = None  # heads of keys and values, if fewer than `heads`
    tied: bool = False  # the head is the embedding
    positions: int = 1024


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    title: str
    shape: Shape
    prompts: str = "words"  # random words, all as long as the longest; ragged: from 1/8 of it up; hh: dialogues
    prompt_tokens: int = 64  # the longest prompt
    response_tokens: int = 64  # every response: ends of text are suppressed, so that all do the same work
    responses: int = 64
    passes: int = 2
    minibatch: int = 16
    precision: str = "fp32"
    cuda: bool = False  # measured on a GPU only
    alone: str = ""  # nobody but APA with a shared critic ("shared"), or in groups in both layouts ("group")
    lora: int = 0  # rank of the policy's adapter, for every contestant; 0 = all weights


def read_job(saved: dict[str, Any]) -> Job:
    return Job(**{**saved, "shape": Shape(**saved["shape"])})


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One process of a job. `kind`: ours, trl_ppo or trl_grpo; the rest is for ours."""

    name: str
    kind: str = "ours"
    objective: str = ""
    value: str = ""
    plain: bool = False  # a row for each response, where a group's prompt would be computed once

    @property
    def lesser(self) -> bool:
        """No target is about it: one round is enough."""
        return self.kind == "ours" and self.name not in ("ppo-separate", "apa-shared", "apa-group")


SMALL = Shape(vocabulary=2048, hidden=256, layers=4, heads=8, intermediate=1024)
SMOLLM2 = Shape(vocabulary=49152, hidden=576, layers=30, heads=9, intermediate=1536, family="llama", kv_heads=3,
                tied=True)  # fmt: skip
PYTHIA_410M = Shape(vocabulary=50304, hidden=1024, layers=24, heads=16, intermediate=4096, positions=2048)
PYTHIA_1B = Shape(vocabulary=50304, hidden=2048, layers=16, heads=8, intermediate=8192, positions=2048)
LLAMA_7B = Shape(vocabulary=32000, hidden=4096, layers=32, heads=32, intermediate=11008, family="llama", positions=2048)


JOBS = (
    Job(name="fixed-2k", title="64 + 64 tokens, vocabulary 2,048", shape=SMALL),
    Job(name="fixed-50k", title="64 + 64 tokens, vocabulary 50,304", shape=replace(SMALL, vocabulary=50304)),
    Job(name="hh", title="HH prompts up to 384 + 64 tokens, vocabulary 8,192", shape=replace(SMALL, vocabulary=8192),
        prompts="hh", prompt_tokens=384),
    Job(name="smollm2", title="SmolLM2-135M shape with LoRA, 32 + 16 tokens", shape=SMOLLM2, prompt_tokens=32,
        response_tokens=16, lora=LORA_RANK),
    *(Job(name=name, title=f"{title}, bf16, prompts up to 512 + 128 tokens", shape=shape, lora=lora, prompts="ragged",
          prompt_tokens=512, response_tokens=128, precision="bf16", cuda=True)
      for name, title, shape, lora in (("pythia-410m", "Pythia 410M shape", PYTHIA_410M, 0),
                                       ("pythia-1b", "Pythia 1B shape", PYTHIA_1B, 0),
                                       ("llama-7b-lora", "Llama 7B shape with LoRA", LLAMA_7B, LORA_RANK))),
)  # fmt: skip

# Growth: one size of the first is changed in each of the others.
GROWTH = Job(name="growth-base", title="16 responses of 64 + 64 tokens, vocabulary 8,192", responses=16, alone="shared",
             shape=replace(SMALL, vocabulary=8192))  # fmt: skip
JOBS += (
    GROWTH,
    *(replace(GROWTH, name=f"growth-response-{n}", title=f"64 + {n} tokens", response_tokens=n)
      for n in (128, 256, 512)),
    *(replace(GROWTH, name=f"growth-batch-{n}", title=f"{n} responses", responses=n) for n in (64, 256)),
    *(replace(GROWTH, name=f"growth-vocabulary-{n}", title=f"vocabulary {n:,}", shape=replace(SMALL, vocabulary=n))
      for n in (32768, 131072)),
)  # fmt: skip
JOBS += tuple(
    Job(name=f"prompt-{n}", title=f"groups of 8, {n} + 32 tokens", prompt_tokens=n, response_tokens=32, alone="group",
        shape=replace(SMALL, vocabulary=8192)) for n in (32, 128, 512)
)  # fmt: skip


def contestants(job: Job, *, with_trl: bool) -> list[Contestant]:
    """Who takes part, in the order of a round: rivals between ours, so that a machine that drifts drifts for all."""
    group = Contestant(name="apa-group", objective="apa", value="group")
    plain = replace(group, name="apa-group-plain", plain=True)
    if job.alone:
        shared = Contestant(name="apa-shared", objective="apa", value="shared")
        return [group, plain] if job.alone == "group" else [shared]
    # with LoRA no second network, all of it trained, which is what LoRA is chosen to avoid; TRL's critic is one
    kinds = ("shared", "adapter") if job.lora else ("separate", "shared", "adapter")
    ours = [Contestant(name=f"{o}-{kind}", objective=o, value=kind) for kind in kinds for o in ("ppo", "apa")]
    ours += [group, plain]
    ppo, grpo = Contestant(name="trl-ppo", kind="trl_ppo"), Contestant(name="trl-grpo", kind="trl_grpo")
    rivals = ([grpo] if job.lora else [ppo, grpo]) if with_trl else []
    return [*rivals[:1], *ours, *rivals[1:]]


def work(job: Job, name: str, prompt_tokens: float) -> tuple[float, float] | None:
    """Tokens of a pass over one rollout and floating-point operations of an iteration; None with a critic.

    A multiplication and an addition are two operations. n tokens in rows of length L, t of them scored, take forward
    2 M n + 4 H layers Σ L² / 2 + 2 V H t, with M weights in the layers' matrices, H hidden and V vocabulary. Backward
    takes twice that, and half of it for frozen weights. An iteration is sampling (each prompt once), the reference's
    forward, and `passes` times forward and backward. `prompt_tokens`: mean of the prompts.
    """
    if not name.startswith("apa-group"):
        return None
    shape, B, T = job.shape, job.responses, job.response_tokens
    kv = (shape.kv_heads or shape.heads) / shape.heads
    matrices = 3 if shape.family == "llama" else 2  # of the MLP
    M = shape.layers * ((2 + 2 * kv) * shape.hidden**2 + matrices * shape.hidden * shape.intermediate)
    rows, length = (B, prompt_tokens + T) if name.endswith("-plain") else (B / GROUP, prompt_tokens + GROUP * T)

    def forward(tokens: float, pairs: float) -> float:
        head = 2 * shape.vocabulary * shape.hidden * B * T
        return 2 * M * tokens + 4 * shape.hidden * shape.layers * pairs / 2 + head

    sampling = forward(B / GROUP * prompt_tokens + B * T, B * (prompt_tokens + T) ** 2)
    one = forward(rows * length, rows * length**2)
    return rows * length, sampling + one + job.passes * one * (2 if job.lora else 3)


def overrides(job: Job, contestant: Contestant, folder: str, data: str, device: str, run_dir: str) -> list[str]:
    """What `apa-train` would be told. What is not named here is measured at its default."""
    lora = job.lora or (LORA_RANK if contestant.value == "adapter" else 0)
    group = ["advantage.name=group", "value.kind=none", f"rollout.responses_per_prompt={GROUP}"]
    return [
        *["config=own", f"policy.path={folder}/policy", f"reward.path={folder}/reward", f"data.path={data}"],
        *[f"data.format={'hh' if job.prompts == 'hh' else 'text'}", f"data.max_prompt_tokens={job.prompt_tokens}"],
        *[f"generation.{end}_new_tokens={job.response_tokens}" for end in ("max", "min")],
        *[f"objective={contestant.objective}", f"rollout.batch_size={job.responses}"],
        *(group if contestant.value == "group" else [f"value.kind={contestant.value}"]),
        *([f"policy.adapter.r={lora}"] if lora else []),
        *["training.iterations=1000000", f"training.epochs_per_rollout={job.passes}"],
        *[f"training.minibatch_size={job.minibatch}", f"optimizer.learning_rate={LEARNING_RATE}"],
        *["checkpoint.every=0", "evaluation.prompts=0", "tracking.wandb.mode=disabled", "tracking.console=plain"],
        *[f"seed={SEED}", f"device={device}", f"precision={job.precision}", f"output_dir={run_dir}"],
    ]


def quick(job: Job) -> Job:
    """The same job, small enough to see in seconds that everything runs. Its figures mean nothing."""
    shape = replace(
        job.shape, vocabulary=min(job.shape.vocabulary, 8192), hidden=64, layers=2, heads=2, intermediate=128
    )
    return replace(job, shape=shape, prompt_tokens=job.prompt_tokens // 4, response_tokens=8, responses=16, minibatch=8)
