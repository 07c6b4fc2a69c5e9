"""Prompt files that are wrong. The policy's tokenizer reads prompts, so the policy is loaded by then."""

from __future__ import annotations

import io
from pathlib import Path

from bad_input.damage import file, rows, torn_gzip
from bad_input.harness import Make, Parts, Row
from tiny_models import make_chat_tokenizer, save_policy

TWO = '{"prompt": "one"}\n{"prompt": "two"}\n'


def data(name: str, path: str, make: Make, line: str, *overrides: str) -> Row:
    command = " ".join(["apa-train config=base.yaml", f"data.path={path}", *overrides])
    return Row(name=name, command=command, make=make, line=line, begun=True)


def parquet(**columns: list[object]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def chat(*roles: str) -> dict[str, object]:
    return {"prompt": [{"role": role, "content": "hello"} for role in roles]}


def chats(family: str, *chat_rows: dict[str, object]) -> Make:
    """A file of chats, and chat_policy/, whose tokenizer has a template of this family."""

    def make(folder: Path, parts: Parts) -> None:
        rows("a.jsonl", *chat_rows)(folder, parts)
        save_policy(folder / "chat_policy", make_chat_tokenizer(family))

    return make


CALLING = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
CHATTING = "policy.path=./chat_policy"
NOTHING_MADE = file("prompts.jsonl", TWO)
OFFLINE = "rollout.source=offline"
LOGGED = {"prompt": "p", "response": "x"}

ROWS = [
    data("a link to nothing", "l.jsonl", lambda folder, parts: (folder / "l.jsonl").symlink_to("gone.jsonl"),
         "data.path: l.jsonl is a link to gone.jsonl, which is not there; fix the link"),
    data("no such file", "promts.jsonl", NOTHING_MADE, "data.path: there is no file promts.jsonl; did you mean prompts.jsonl?"),
    data("a kind of file that is not read", "a.pkl", file("a.pkl", b"\x80\x04."), "a.pkl: the kind of file is not known; …"),
    data("an empty file", "a.jsonl", file("a.jsonl", ""), "a.jsonl: holds no prompts; give it at least one row"),
    data("a gzip file cut short", "a.jsonl.gz", file("a.jsonl.gz", torn_gzip(TWO * 100)),
         "a.jsonl.gz: is not a whole gzip file (…); compress it again, or drop the .gz"),
    data("UTF-16 with its mark", "a.csv", file("a.csv", "prompt\none\n".encode("utf-16")),
         "a.csv, line 1: is not UTF-8 (byte 0xff); save the file as UTF-8"),
    data("a broken line", "a.jsonl", file("a.jsonl", TWO + '{"prompt": "three"\n' + TWO),
         "a.jsonl, line 3: is not JSON: … (…column …); write one object a line, such as {\"prompt\": \"...\"}"),
    data("JSON nested too deep", "a.jsonl", file("a.jsonl", '{"prompt": ' + "[" * 100_000),
         "a.jsonl, line 1: is not usable JSON: …; write one object a line, …"),
    data("another name for the column", "a.jsonl", rows("a.jsonl", {"promt": "x"}),
         "a.jsonl: has no column 'prompt' (it has promt); set data.prompt_column=promt"),
    data("a row without the column", "a.jsonl", rows("a.jsonl", {"prompt": "x"}, {"id": 2}),
         "a.jsonl, line 2: has no 'prompt'; give every row this column"),
    data("a prompt that is null", "a.jsonl", rows("a.jsonl", {"prompt": "x"}, {"prompt": None}),
         "a.jsonl, line 2: 'prompt' is null, not a string; correct it, or remove the row"),
    data("a prompt that is a number", "a.jsonl", rows("a.jsonl", {"prompt": "x"}, {"prompt": 7}),
         "a.jsonl, line 2: 'prompt' is a number, not a string; correct it, or remove the row"),
    data("numbers in a parquet file", "a.parquet", file("a.parquet", parquet(prompt=[1, 2])),
         "a.parquet, row 1: 'prompt' is a number, neither text nor messages; set data.prompt_column or data.format"),
    data("a parquet file cut short", "a.parquet", file("a.parquet", parquet(prompt=["x"] * 50)[:-30]),
         "a.parquet: is not a readable Parquet file: …; write it again"),
    data("uneven rows", "a.csv", file("a.csv", "prompt,n\nx,1\ny,2,3\n"),
         "a.csv, row 2: has 3 fields, and the header 2 (line 3); put values that hold a separator in quotes"),
    data("a quote that does not close", "a.csv", file("a.csv", 'prompt\n"x\ny\n'),
         "a.csv, line 3: is malformed: …; check its quotes"),
    data("dialogues without an answer", "a.jsonl",
         rows("a.jsonl", {"chosen": "\n\nHuman: hi\n\nAssistant: yes"}, {"chosen": "\n\nHuman: hi"}),
         "a.jsonl, line 2: 'chosen' has no '\\n\\nAssistant:'; correct it, or choose another data.format", "data.format=hh"),
    data("messages of an unknown role", "a.jsonl", rows("a.jsonl", chat("user"), chat("human")),
         "a.jsonl, line 2: message 1 has the role 'human'; use one of system, developer, user, assistant, tool"),
    data("messages with nothing but an answer", "a.jsonl", rows("a.jsonl", chat("user"), chat("assistant")),
         "a.jsonl, line 2: there is no message before the assistant's; begin with a user message"),
    data("messages that end with the system's", "a.jsonl", rows("a.jsonl", chat("user", "system")),
         "a.jsonl, line 1: the last message is from 'system', not from the user; end the prompt with a user message, or a tool's"),
    data("tools for a template that takes none", "a.jsonl", chats("chatml", {**chat("user"), "tools": [{"name": "f"}]}),
         "a.jsonl, line 1: the policy's chat template takes no tools, or not all of them; use a policy whose template does, or take the column …",
         CHATTING),
    data("calls for a template that takes none", "a.jsonl",
         chats("chatml", {"messages": [*chat("user")["prompt"], CALLING, *chat("tool")["prompt"]]}),
         "a.jsonl, line 1: the policy's chat template leaves tool_calls out, or some of them; use a policy whose template takes them, …",
         CHATTING),
    data("a rendered dialogue inside a message", "a.jsonl",
         chats("chatml", {"messages": [{"role": "user", "content": "a<|im_end|>\n<|im_start|>assistant\n"}]}),
         "a.jsonl, line 1: a message of the user holds a rendered chat template, …; give its messages one by one, …",
         CHATTING),
    data("a picture in a message", "a.jsonl",
         rows("a.jsonl", {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}),
         "a.jsonl, line 1: the content of message 1 has a part that is of type 'image', and only text is read; remove the row"),
    data("nothing but null prompts", "a.jsonl", rows("a.jsonl", {"prompt": None}, {"prompt": ""}),
         "a.jsonl: every prompt is null or empty; correct the rows, or set data.prompt_column",
         "data.empty=drop data.format=text"),
    data("ShareGPT's messages from nobody known", "a.jsonl",
         rows("a.jsonl", {"conversations": [{"from": "narrator", "value": "x"}]}),
         "a.jsonl, line 1: message 1 is from 'narrator'; use one of system, human, user, …"),
    data("a system prompt for plain text", "prompts.jsonl", NOTHING_MADE,
         "data.system_prompt: set, but prompts.jsonl holds plain text, and data.format=text uses no template; add data.format=chat, …",
         "data.system_prompt=Hello"),
    data("arguments of no template", "prompts.jsonl", NOTHING_MADE,
         "data.template_arguments: set, but prompts.jsonl holds no messages, and data.format=text uses no template; …",
         "data.template_arguments={enable_thinking:false}"),
    data("a system message that the template refuses", "a.jsonl", chats("no_system", chat("user"), chat("system", "user")),
         "a.jsonl, line 2: the policy's chat template takes no system message: System role not supported; take it out, and put …",
         CHATTING),
    data("a system prompt that the template refuses", "a.jsonl", chats("no_system", chat("user")),
         "data.system_prompt: the policy's chat template takes no system message: System role not supported; set data.system_prompt=null, …",
         CHATTING, "data.system_prompt=Hello"),
    data("roles that do not alternate", "a.jsonl", chats("no_system", chat("user"), chat("user", "user")),
         "a.jsonl, line 2: the chat template refuses the messages: Conversation roles must alternate …; … (this row: user, user)",
         CHATTING),
    data("an argument that the template does not read", "a.jsonl", chats("chatml", chat("user")),
         "data.template_arguments: the policy's chat template reads no argument enable_thnking; check its name, or leave it out",
         CHATTING, "data.template_arguments={enable_thnking:false}"),
    data("a chat whose last turn is too long", "a.jsonl", chats("chatml", chat("user", "assistant", "user")),
         "data.max_prompt_tokens: every prompt of a.jsonl is longer than 6 tokens, its oldest turns left out; raise it",
         CHATTING, "data.max_prompt_tokens=6"),
    data("a stop token that is none", "a.jsonl", chats("chatml", chat("user")),
         "generation.stop_tokens: <|im_endd|> is no token of the policy's tokenizer; did you mean <|im_end|>?",
         CHATTING, "generation.stop_tokens='[\"<|im_endd|>\"]'"),
    data("a stop string that the tokenizer cannot write", "prompts.jsonl", NOTHING_MADE,
         "generation.stop: 'Human:' ends no response: the policy's tokenizer has no 'H'; take it out, or name a token: …",
         "policy.path=builtin:reviews/policy", "generation.stop='[\"Human:\"]'"),
    data("a message without a content", "a.jsonl", rows("a.jsonl", {"prompt": [{"role": "user", "text": "x"}]}),
         "a.jsonl, line 1: message 1 has no 'content' (it has role, text); write each as …"),
    data("messages for a policy without a template", "a.jsonl", rows("a.jsonl", chat("user")),
         "data.format: the prompts are messages, and the policy's tokenizer has no chat template; …"),
    data("every prompt too long", "a.jsonl", rows("a.jsonl", {"prompt": "the quick brown fox jumps"}),
         "data.max_prompt_tokens: every prompt of a.jsonl is longer than 3 tokens; raise it, or set data.overlong=cut",
         "data.overlong=drop", "data.max_prompt_tokens=3"),
    data("prompt and response too long for the policy", "prompts.jsonl", NOTHING_MADE,
         "data.max_prompt_tokens: the longest prompt and generation.max_new_tokens are … tokens, and the policy takes 1024; …",
         "generation.max_new_tokens=1024"),
    data("everything held out", "prompts.jsonl", NOTHING_MADE,
         "data.eval_path: every prompt of prompts.jsonl is also held out; use other held-out prompts, …",
         "data.eval_path=prompts.jsonl evaluation.prompts=8"),
    data("held-out prompts that are not there", "prompts.jsonl", NOTHING_MADE,
         "data.eval_path: there is no file evl.jsonl; did you mean prompts.jsonl?",
         "data.eval_path=evl.jsonl evaluation.prompts=1"),
    data("prompts without responses, offline", "prompts.jsonl", NOTHING_MADE,
         "prompts.jsonl: has neither 'chosen' and 'rejected' nor 'response' beside the prompt (it has nothing); "
         "set data.response_column, or rollout.source=online", OFFLINE),
    data("a response that is null", "a.jsonl", rows("a.jsonl", LOGGED, {"prompt": "p", "response": None}),
         "a.jsonl, line 2: 'response' is null, not a string; correct it, or remove the row", OFFLINE),
    data("a row without a score", "a.jsonl", rows("a.jsonl", {**LOGGED, "score": 1}, LOGGED),
         "a.jsonl, line 2: 'score' is null, not a number; correct it, or remove the row",
         OFFLINE, "data.score_column=score"),
    data("a score that is no number", "a.csv", file("a.csv", "prompt,response,score\np,x,1\nq,y,good\n"),
         "a.csv, row 2: 'score' is a string, not a number; correct it, or remove the row",
         OFFLINE, "data.score_column=score"),
    data("messages in answer to text", "a.jsonl",
         rows("a.jsonl", {"prompt": "p", "response": [{"role": "assistant", "content": "x"}]}),
         "a.jsonl, line 1: 'response' is a list of messages, and the prompt is text; set data.format=chat", OFFLINE),
    data("a data set that the Hub has to be asked for", "someone/prompts", NOTHING_MADE,
         "data.path: someone/prompts is no file here, and the Hub cannot be reached for a data set of this name; …"),
]  # fmt: skip
