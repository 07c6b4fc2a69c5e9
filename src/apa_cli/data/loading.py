"""From the data settings to two sets of prompts: one to train on, one held out."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from apa_cli.config.schema import DataConfig
from apa_cli.data.formats import parse_rows
from apa_cli.data.prompts import Prompt, PromptSet
from apa_cli.data.sources import read_source
from apa_cli.data.table import Findings, Progress
from apa_cli.data.tokenization import cut_left, encode, without_oldest_turns
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_prompts(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    evaluation_prompts: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[PromptSet, PromptSet]:
    """Training prompts and held-out prompts, without any prompt in common.

    The held-out set is `evaluation_prompts` rows of data.eval_path (or all, if it has fewer), or else as many distinct
    prompts of data.path; `seed` selects them. Training rows with a held-out prompt are left out. Both sets keep the
    order of their file. Raises UserError.
    """
    pool = _read(config, tokenizer, evaluation=False, seed=seed, progress=progress)
    if evaluation_prompts == 0:
        held_out = PromptSet(prompts=[])
    elif config.eval_path is not None:
        held_out = _read(config, tokenizer, evaluation=True, seed=seed, progress=progress)
        if evaluation_prompts < len(held_out):  # drawn: a file may be sorted
            chosen = random.Random(f"evaluation/{seed}").sample(range(len(held_out)), evaluation_prompts)
            held_out = replace(held_out, prompts=[held_out.prompts[index] for index in sorted(chosen)])
    else:
        held_out = replace(pool, prompts=_set_aside(pool, evaluation_prompts, seed), dropped=0)
    known = {key for prompt in held_out.prompts for key in (prompt.text, prompt.token_ids)}
    kept = [prompt for prompt in pool.prompts if prompt.text not in known and prompt.token_ids not in known]
    if not kept:
        problem = f"every prompt of {pool.source} is also held out"
        raise UserError("data.eval_path", problem, "use other held-out prompts, or lower evaluation.prompts")
    return replace(pool, prompts=kept, withheld=len(pool) - len(kept)), held_out


def _read(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, evaluation: bool, seed: int, progress: Progress | None
) -> PromptSet:
    """Every usable prompt of data.path or data.eval_path."""
    table = read_source(config, evaluation=evaluation, seed=seed, progress=progress)
    findings = Findings()
    format, rows = parse_rows(
        table,
        format=config.format,
        prompt_column=config.prompt_column,
        system_prompt=config.system_prompt,
        prompt_template=config.prompt_template,
        dropped=findings if config.empty == "drop" else None,
    )
    chat = format in ("chat", "hh_chat")
    if config.arguments and not chat:
        problem = f"set, but {table.source} holds no messages, and data.format={format} uses no template"
        raise UserError("data.template_arguments", problem, "add data.format=chat, or unset it")
    ids = encode(
        rows,
        tokenizer,
        arguments=config.arguments,
        system_prompt=config.system_prompt,
        findings=findings,
        progress=progress,
    )
    fitted = (_fit(row, row_ids, config, tokenizer) for row, row_ids in zip(rows, ids, strict=True))
    prompts = [prompt for prompt in fitted if prompt is not None]
    if not prompts:
        problem = f"every prompt of {table.source} is longer than {config.max_prompt_tokens} tokens"
        problem += ", its oldest turns left out" if chat and config.overlong == "cut" else ""
        raise UserError("data.max_prompt_tokens", problem, "raise it" if chat else "raise it, or set data.overlong=cut")
    return PromptSet(
        prompts=prompts,
        source=table.source,
        format=format,
        commit=table.commit,
        drawn=f"{len(table.rows):,} of {table.count:,} rows were read (data.max_rows)" if table.count else None,
        findings=findings,
        all=len(prompts),
        dropped=len(rows) - len(prompts),
    )


def _fit(row: Prompt, ids: list[int], config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Prompt | None:
    """`row` with its `ids`, shortened to data.max_prompt_tokens; None if it is to be dropped."""
    limit = config.max_prompt_tokens
    if len(ids) <= limit:
        return replace(row, token_ids=tuple(ids))
    if config.overlong == "drop":
        return None
    if row.messages is not None:  # by whole turns, so that their markers stay intact
        return without_oldest_turns(row, limit, tokenizer, arguments=config.arguments)
    ids = cut_left(ids, limit, tokenizer.bos_token_id)
    text = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return replace(row, token_ids=tuple(ids), text=text, cut=True)


def _set_aside(pool: PromptSet, count: int, seed: int) -> list[Prompt]:
    """`count` distinct prompts. Raises UserError unless another one is left to train on."""
    order = list(range(len(pool)))
    random.Random(f"held-out/{seed}").shuffle(order)
    seen: set[str | tuple[int, ...]] = set()
    distinct: list[int] = []
    for index in order:
        keys = (pool.prompts[index].text, pool.prompts[index].token_ids)
        if seen.isdisjoint(keys):
            distinct.append(index)
        seen.update(keys)
    if len(distinct) <= count:
        problem = f"{count} prompts are to be held out, and {pool.source} has {len(distinct)} different ones in all"
        raise UserError("evaluation.prompts", problem, "lower it, add prompts, or set data.eval_path")
    return [pool.prompts[index] for index in sorted(distinct[:count])]
