"""Holds what the tables rest on: windows, gaps, ratios, rows, and where a table goes. Standard library only."""

import json
import tempfile
import unittest
from pathlib import Path

import rows
import table
from measure import decoding, gaps, quantile, throughput, together
from results import Results
from servers import Answer

BUILD = "build"


def answer(began, *times):
    return Answer(began, list(times), len(times))


class Rates(unittest.TestCase):
    def test_decoding_counts_only_while_every_stream_has_begun_and_none_has_ended(self):
        answers = [answer(0, 1, 2, 3, 4, 5), answer(0, 3, 4, 5, 6, 7)]
        self.assertEqual(together(answers), (3, 5))
        self.assertEqual(decoding(answers), (2 + 2) / 2)

    def test_streams_that_never_decode_together_have_no_rate(self):
        self.assertEqual(decoding([answer(0, 1, 2), answer(0, 3, 4)]), 0)

    def test_tokens_without_an_event_of_their_own_are_counted(self):
        silent = answer(0, 1, 2, 3)
        silent.tokens = 6
        self.assertEqual(decoding([silent]), 2 * 2 / 2)
        self.assertEqual(throughput([silent]), 6 / 3)

    def test_a_gap_that_a_span_begins_or_ends_in_belongs_to_it(self):
        self.assertEqual(gaps([answer(0, 1, 2, 4, 7, 8)], 3, 5), [2, 3])

    def test_a_quantile_is_a_value_that_was_seen(self):
        self.assertEqual(quantile([3, 1, 2], 50), 2)
        self.assertEqual(quantile(range(1, 101), 99), 99)
        self.assertEqual(quantile([5], 95), 5)


class Plan(unittest.TestCase):
    def test_every_row_has_what_it_compares_measured(self):
        plan = rows.planned()
        for row in rows.AGAINST:
            self.assertIn(row.peer, plan[row.format, row.workload])
        for row in rows.ITSELF:
            self.assertTrue({(row.format, row.workload), (row.format, row.base)} <= plan.keys())
        for row in rows.CEILINGS:
            self.assertIn((row.format, row.workload), plan)

    def test_an_aim_is_beyond_its_bar(self):
        for row in (*rows.AGAINST, *rows.ITSELF):
            self.assertTrue(row.aim is None or row.aim > row.bar)
        for row in (*rows.MEMORY, *rows.PERPLEXITY, *rows.ALONE):
            self.assertTrue(row.aim is None or (row.aim > row.bar) == row.least)

    def test_every_part_is_described(self):
        self.assertEqual({(row.part, row.figure) for row in rows.ALONE}, table.ALONE.keys())


class Table(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "results.json"
        results = Results(self.path, threads=2)
        entry = results.entry("compare", format="Q8_0", workload="1 stream", binary=BUILD)
        for ours, theirs in ((150.0, 100.0), (160.0, 100.0), (170.0, 100.0), (180.0, 100.0), (200.0, 100.0)):
            figures = lambda rate: {"tokens_per_second": rate, "decoding_per_second": rate, "first_token_s": 0.1}
            entry["rounds"].append({"tunegate": figures(ours), "llama.cpp": figures(theirs)})
        results.save()

    def tearDown(self):
        self.folder.cleanup()

    def line(self):
        text, _ = table.rendered(Results(self.path))
        return next(line for line in text.splitlines() if line.startswith("| 1 stream | Q8_0"))

    def test_a_ratio_is_the_median_of_the_rounds_and_is_judged(self):
        self.assertEqual(self.line(), "| 1 stream | Q8_0 | 170 (150–200) | llama.cpp: 100 (100–100) | 1.70 (1.50–2.00) | ≥ 1.6× |  | bar |")

    def test_a_later_run_without_the_peer_does_not_hide_an_earlier_one_with_it(self):
        results = Results(self.path, threads=2)
        results.entry("compare", format="Q8_0", workload="1 stream", binary=BUILD)["rounds"] += [{"tunegate": {"tokens_per_second": 1.0}}] * table.ROUNDS
        results.save()
        self.assertIn("1.70", self.line())

    def test_fewer_rounds_are_not_in_the_table_and_an_earlier_build_is_marked(self):
        results = Results(self.path, threads=2)
        results.at = "9"
        figures = {"tunegate": {"tokens_per_second": 900.0}, "llama.cpp": {"tokens_per_second": 100.0}}
        results.entry("compare", format="Q8_0", workload="1 stream", binary=BUILD)["rounds"] += [figures] * (table.ROUNDS - 1)
        results.save()
        self.assertIn("1.70", self.line())
        results.at = "99"
        results.entry("compare", format="Q4_1", workload="1 stream", binary="another")["rounds"] += [figures] * table.ROUNDS
        results.save()
        text, _ = table.rendered(Results(self.path))
        self.assertIn("| 1 stream | Q4_1", text)
        self.assertIn("| 1 stream ¹ | Q8_0 | 170", text)
        self.assertIn("¹ of an earlier build (build) than the other rows (another).", text)

    def test_our_rates_are_compared_within_one_run(self):
        rate = lambda rate: [{"tunegate": {"decoding_per_second": rate}}] * table.ROUNDS
        for at, workload, found in (("1", "8 streams", 100.0), ("1", "8 streams, 8 adapters", 80.0), ("2", "8 streams", 400.0)):
            results = Results(self.path)
            results.at = at
            results.entry("compare", format="F16", workload=workload, binary=BUILD)["rounds"] += rate(found)
            results.save()
        text, _ = table.rendered(Results(self.path))
        self.assertIn("| 8 streams, 8 adapters, decode only | F16 | 80 (80–80) | ours, 8 streams: 100 (100–100) | 0.80 (0.80–0.80) | ≥ 0.77 | ≥ 0.87 | bar |", text)

    def test_rows_that_were_not_measured_are_named(self):
        _, missing = table.rendered(Results(self.path))
        self.assertIn("8 streams, F16, llama.cpp", missing)
        self.assertNotIn("1 stream, Q8_0, llama.cpp", missing)

    def test_an_entry_with_too_few_rounds_is_not_there(self):
        results = Results(self.path)
        self.assertIsNone(results.newest("compare", 6, ["tunegate"], format="Q8_0", workload="1 stream"))
        self.assertEqual(json.loads(self.path.read_text())["machine"]["threads"], 2)

    def test_a_table_replaces_what_stands_between_the_marks_and_nothing_else(self):
        readme = Path(self.folder.name) / "README.md"
        readme.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
        table.write(readme, "new")
        self.assertEqual(readme.read_text(), "before\n<!-- measured -->\nnew\n<!-- /measured -->\nafter\n")


if __name__ == "__main__":
    unittest.main()
