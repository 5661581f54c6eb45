"""What every Python peer does in a turn: answer requests, and print one JSON line for each.

A peer is a function from (prompt tokens, new tokens) to (seconds to the first token, tokens per
second after it). The first request warms up and is not printed.
"""

import json
import time
from collections.abc import Callable

Request = Callable[[int, int], tuple[float, float]]


def take(request: Request, new: str, prompts: list[str]) -> None:
    """Answers prompts of these lengths with `new` tokens each."""
    request(8, 4)
    for prompt in map(int, prompts):
        ttft, decode = request(prompt, int(new))
        line = {"prompt": prompt, "ttft_s": ttft, "decode_tps": decode}
        print(json.dumps(line), flush=True)


Step = Callable[[], None]


def timed(first: Step, following: Step, new: int) -> tuple[float, float]:
    """Times the call that writes the first token, and the calls that write one more each."""
    begin = time.perf_counter()
    first()
    after_first = time.perf_counter()
    for _ in range(new - 1):
        following()
    return after_first - begin, (new - 1) / (time.perf_counter() - after_first)
