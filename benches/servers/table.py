#!/usr/bin/env python3
"""Writes what `compare.py`, `alone.py` and `perplexity.py` measured as tables, with what each row is to reach.

    python3 benches/servers/table.py RESULTS.json [MORE.json …] [README.md]

Each file of results has tables of its own. Without a README they are printed; with one they replace what stands between its two lines
`<!-- measured -->` and `<!-- /measured -->`. Rows that were not measured are left out, and counted on standard error.
"""

import statistics
import sys
from pathlib import Path

import rows
from measure import median_and_range
from results import Results

# What is timed is the median of at least so many rounds.
ROUNDS, TIMED = 5, ("compare", "alone")
GROUPS = (*TIMED, "ceilings", "memory", "perplexity")
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
OURS = "tunegate"


class Tables:
    """Rows of the build that was measured last, and of earlier ones where it was not; those are marked."""

    def __init__(self, results):
        self.results, self.missing, self.earlier = results, [], set()
        everything = [entry for group in GROUPS for entry in results.all.get(group, [])]
        self.binary = max(everything, key=lambda entry: entry["at"])["binary"] if everything else None

    def entry(self, what, group, *servers, **which):
        rounds = ROUNDS if group in TIMED else 1
        found = self.results.newest(group, rounds, servers, binary=self.binary, **which) or self.results.newest(group, rounds, servers, **which)
        if not found:
            self.missing.append(what)
        return found

    def named(self, what, *entries):
        """A row's name, marked where it is of an earlier build."""
        others = {entry["binary"] for entry in entries} - {self.binary}
        self.earlier |= others
        return f"{what} ¹" if others else what

    def against(self):
        """A line for each comparison with a peer."""
        for row in rows.AGAINST:
            what = f"{row.workload}, {row.format}, {row.peer}"
            if not (found := self.entry(what, "compare", OURS, row.peer, format=row.format, workload=row.workload)):
                continue
            rate = lambda server: [turn[server]["tokens_per_second"] for turn in found["rounds"]]
            ours, theirs = rate(OURS), rate(row.peer)
            ratios = [one / other for one, other in zip(ours, theirs)]
            yield [self.named(row.workload, found), row.format, median_and_range(ours, 0), f"{row.peer}: {median_and_range(theirs, 0)}", *judged(ratios, row, "≥", "×")]

    def itself(self):
        """A line for each comparison of our decode rates with each other."""
        for row in rows.ITSELF:
            of = lambda name: self.results.entries("compare", ROUNDS, [OURS], format=row.format, workload=name)
            pairs = [(one, other) for one in of(row.workload) for other in of(row.base) if one["at"] == other["at"]]
            pair = next((pair for pair in pairs if pair[0]["binary"] == self.binary), pairs[0] if pairs else None)
            if not pair:
                self.missing.append(f"{row.workload} against {row.base}, {row.format}")
                continue
            rates = [[turn[OURS]["decoding_per_second"] for turn in found["rounds"]] for found in pair]
            ratios = [one / other for one, other in zip(*rates)]
            yield [self.named(f"{row.workload}, decode only", *pair), row.format, median_and_range(rates[0], 0), f"ours, {row.base}: {median_and_range(rates[1], 0)}", *judged(ratios, row, "≥", "")]

    def ceilings(self):
        """A line for each rate that is held against the machine."""
        for row in rows.CEILINGS:
            found = self.entry(f"{row.workload}, {row.format}, ceiling", "compare", OURS, format=row.format, workload=row.workload)
            limits = self.entry(f"limits, {row.format}", "ceilings", format=row.format)
            if not (found and limits):
                continue
            ceiling = limits["rounds"][0][row.limit]
            ours = [turn[OURS]["tokens_per_second"] for turn in found["rounds"]]
            against = f"the machine's {row.limit}: {ceiling:.0f}"
            yield [self.named(row.workload, found), row.format, median_and_range(ours, 0), against, *judged([rate / ceiling for rate in ours], row, "≥", "")]

    def memory(self):
        for row in rows.MEMORY:
            if found := self.entry(f"memory, {row.figure}", "memory", OURS, rows.LLAMA, format=row.figure):
                ours, theirs = ([turn[server] for turn in found["rounds"]] for server in (OURS, rows.LLAMA))
                ratios = [one / other for one, other in zip(ours, theirs)]
                yield [self.named("Pss, base and 16 adapters, MiB", found), row.figure, f"{ours[0]:.0f}", f"{rows.LLAMA}: {theirs[0]:.0f}", *judged(ratios, row, "≤", "×")]

    def perplexity(self):
        for row in rows.PERPLEXITY:
            if found := self.entry(f"perplexity, {row.figure}", "perplexity", OURS, rows.LLAMA, format=row.figure):
                turn = found["rounds"][0]
                what = self.named(f"perplexity, {turn['tokens']} tokens", found)
                ratio = [turn[OURS] / turn[rows.LLAMA]]
                yield [what, row.figure, f"{turn[OURS]:.3f}", f"{rows.LLAMA}: {turn[rows.LLAMA]:.3f}", *judged(ratio, row, "≤", "×", 4)]

    def alone(self):
        for row in rows.ALONE:
            if found := self.entry(f"{row.part}: {row.figure}", "alone", part=row.part):
                values = [turn[row.figure] for turn in found["rounds"]]
                yield [self.named(ALONE[row.part, row.figure], found), *judged(values, row, "≥" if row.least else "≤", "")]


ALONE = {
    ("prefix", "warm / unshared"): "4 requests sharing a 900-token prefix, last first token, prefix warm against unshared",
    ("prefix", "cold / unshared"): "the same, all four cold at once",
    ("long", "p99 with / without"): "8 streams while a 4,000-token prompt is read, 99th percentile between tokens, against without",
    ("long", "prompt speed beside / alone"): "the same, the prompt's speed against alone",
    ("many", "64 adapters / 8 adapters"): "64 streams over 64 adapters, tokens/s against 64 over 8",
    ("fair", "p95 / (2 × alone + a step)"): "another adapter's first token with 64 requests running and up to 64 queued on one, p95, against 2 × alone and a step",
    ("neighbour", "with / without"): "8 streams while another program keeps one of the two cores busy, tokens/s against without",
}


def judged(values, row, sign, unit, digits=2):
    """Median and range, bar, aim, and which of them is reached."""
    middle, bar = statistics.median(values), getattr(row, "bar", None)
    reaches = lambda bound: bound is not None and (middle >= bound if sign == "≥" else middle <= bound)
    limit = lambda bound: "" if bound is None else f"{sign} {bound:g}{unit}"
    return [median_and_range(values, digits), limit(bar), limit(row.aim), "aim" if reaches(row.aim) else "bar" if reaches(bar) else "no"]


def markdown(heads, lines):
    table = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    return "\n".join(table + ["| " + " | ".join(line) + " |" for line in lines])


def described(everything):
    machine, versions = everything["machine"], everything.get("versions", {})
    sets = ", ".join(machine["instruction sets"])
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['processor']} (family, model, stepping {machine['family, model, stepping']}), {machine['cores']} cores, {machine['memory GiB']} GiB, "
        f"{machine['threads']} threads for every server; {sets}. {shown}. Medians and ranges of at least {ROUNDS} rounds; ratios are taken within a round."
    )


def rendered(results):
    tables = Tables(results)
    beside = [*tables.against(), *tables.itself(), *tables.ceilings(), *tables.memory(), *tables.perplexity()]
    heads = ["", "format", "tunegate", "against", "ratio", "bar", "aim", "reached"]
    parts = [described(results.all), markdown(heads, beside)]
    alone = list(tables.alone())
    if alone:
        parts.append(markdown(["tunegate by itself, Q4_1", "ratio", "bar", "aim", "reached"], alone))
    if tables.earlier:
        parts.append(f"¹ of an earlier build ({', '.join(sorted(tables.earlier))}) than the other rows ({tables.binary}).")
    return "\n\n".join(parts), tables.missing


def main():
    files = [Path(name) for name in sys.argv[1:]]
    readme = files.pop() if files and files[-1].suffix == ".md" else None
    if not files:
        sys.exit(__doc__)
    texts = []
    for file in files:
        text, missing = rendered(Results(file))
        texts.append(text)
        if missing:
            print(f"{file}: {len(missing)} rows are not measured: " + "; ".join(missing), file=sys.stderr)
    if readme:
        write(readme, "\n\n".join(texts))
    else:
        print("\n\n".join(texts))


def write(readme, text):
    """Puts a text between the two lines of a file."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{readme} has no lines {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
