"""Requests under way together, and the rates that their answers show."""

import statistics
import threading
import time

from servers import Answer


class Load:
    """Requests under way in threads of their own; their answers when they are joined."""

    def __init__(self, server, requests):
        self.answers, self.faults = [Answer() for _ in requests], []
        self.enough = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(server, *pair)) for pair in zip(requests, self.answers)]
        for thread in self.threads:
            thread.start()

    def _run(self, server, request, answer):
        try:
            server.ask(*request, answer, self.enough)
        except (RuntimeError, OSError, ValueError) as fault:
            self.faults.append(fault)

    def wait_for(self, tokens):
        """Waits until every stream has so many tokens."""
        while not self.faults and min(len(answer.times) for answer in self.answers) < tokens:
            time.sleep(0.001)

    def wait_for_any(self):
        """Waits until one stream has its first token."""
        while not self.faults and not any(answer.times for answer in self.answers):
            time.sleep(0.001)

    def hang_up(self):
        """Ends every stream at its next token."""
        self.enough.set()

    def running(self):
        return sum(thread.is_alive() for thread in self.threads)

    def join(self):
        for thread in self.threads:
            thread.join()
        if self.faults:
            raise SystemExit(f"a request failed: {self.faults[0]}")
        return self.answers


def throughput(answers):
    """Answered tokens per second, from the first request to the last token."""
    seconds = max(answer.times[-1] for answer in answers) - min(answer.began for answer in answers)
    return sum(answer.tokens for answer in answers) / seconds


def together(answers):
    """The span in which every stream is decoding: from the last first token to the first last one."""
    return max(answer.times[0] for answer in answers), min(answer.times[-1] for answer in answers)


def decoding(answers):
    """Answered tokens per second while all streams decode; 0 if they never do."""
    begin, end = together(answers)
    if begin >= end:
        return 0.0
    # Where some tokens come without an event, an event stands for a little more than a token.
    tokens = sum(sum(begin < time <= end for time in answer.times) * answer.tokens / len(answer.times) for answer in answers)
    return tokens / (end - begin)


def gaps(answers, begin, end):
    """Seconds between the tokens of each stream, wherever they overlap a span."""
    pairs = (pair for answer in answers for pair in zip(answer.times, answer.times[1:]))
    return [later - earlier for earlier, later in pairs if earlier < end and later > begin]


def quantile(values, share):
    """The value that `share` percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def median_and_range(values, digits):
    """`1.5 (1.2–1.8)`; of one value, itself."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
