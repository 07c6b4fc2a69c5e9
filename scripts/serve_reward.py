"""Serve a reward model over HTTP, for reward.kind=http: any sequence classifier in Hugging Face format.

    python scripts/serve_reward.py --model path/to/reward-model --port 5000
    apa-train config=mine.yaml reward.kind=http reward.url=http://127.0.0.1:5000/score

A small server to begin with, and to see the protocol: one process, one model, one batch at a time. A token in the
environment variable REWARD_TOKEN is asked of every request.

    POST /score  {"prompts": [...], "responses": [...], "token_ids": [...], "ended": [...], "messages": [...]}
                 ->  {"scores": [...]}
    GET  /       {"model": ...}
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "REWARD_TOKEN"

Score = Callable[[dict[str, Any]], list[float]]


def load(arguments: argparse.Namespace) -> Score:
    """The model, as a function of a request. Raises UserError."""
    from apa_cli.config.schema import ScorerConfig
    from apa_cli.models.device import select_runtime
    from apa_cli.rewards.classifier import load_classifier
    from apa_cli.rewards.record import FinishedResponses
    from apa_cli.rewards.reward_model import RewardModel

    runtime = select_runtime(arguments.device, arguments.precision)
    model, tokenizer = load_classifier(arguments.model, None, runtime, "--model")
    scorer = RewardModel(
        model,
        tokenizer,
        ScorerConfig(path=arguments.model, format=arguments.format, label=arguments.label),
        runtime,
        key="--model",
        shares_tokenizer=arguments.token_ids,
        microbatch_tokens=16_384,
        policy_tokenizer=tokenizer,
    )
    lock = threading.Lock()

    def score(request: dict[str, Any]) -> list[float]:
        finished = FinishedResponses(
            prompts=request["prompts"],
            responses=request["responses"],
            messages=request.get("messages"),
            columns={},
            token_ids=request.get("token_ids", []),
            ended=() if arguments.token_ids else request.get("ended", ()),  # the ids have their end token
        )
        probed = arguments.token_ids and not any(finished.token_ids)
        if probed:  # apa-train's first question has no tokens
            return [0.0] * len(finished.responses)
        with lock:
            return scorer(finished)

    return score


def handler(score: Score, token: str | None, name: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, {"model": name})

        def do_POST(self) -> None:
            self._answer(*self._reply())

        def _reply(self) -> tuple[int, dict[str, Any]]:
            """Status and content."""
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token is not None and not hmac.compare_digest(sent.encode(), token.encode()):
                return 401, {"error": "another token is needed"}
            try:
                request = json.loads(body)
                prompts, responses = request["prompts"], request["responses"]
                if len(prompts) != len(responses):
                    raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses")
            except (ValueError, KeyError, TypeError) as error:
                return 400, {"error": f"not a request for scores: {type(error).__name__}: {error}"}
            try:
                return 200, {"scores": score(request)}
            except Exception as error:
                return 500, {"error": f"{type(error).__name__}: {error}"}

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main(argv: list[str] | None = None) -> int:
    from apa_cli.errors import UserError

    arguments = parse(argv)
    try:
        score = load(arguments)
        served = handler(score, os.environ.get(TOKEN) or None, arguments.model)
        server = ThreadingHTTPServer((arguments.host, arguments.port), served)
    except (UserError, OSError) as error:
        print(f"serve_reward.py: error: {error}", file=sys.stderr)
        return 2
    host, port = server.server_address[:2]
    print(f"serving {arguments.model}: reward.url=http://{host!s}:{port}/score", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 130
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="serve_reward.py", description=__doc__, formatter_class=described)
    add = parser.add_argument
    add("--model", required=True, help="folder, Hub id, or builtin:reviews/reward")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    add("--port", type=int, default=5000, help="0 = any that is free (default: %(default)s)")
    add("--format", choices=("auto", "text", "pair", "chat"), default="auto", help="as reward.format")
    add("--label", type=int, help="as reward.label")
    add("--token-ids", action="store_true",
        help="the policy has this model's tokenizer: score its token ids, as reward.kind=model does")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
