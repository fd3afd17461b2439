//! Wrong builds in every format do not pass: on both decoders the comparison with the oracle notices them, and in the fast class,
//! for which there is no oracle, the comparison with what the same request gets alone, to the bit. That right ones pass, alone and
//! among others, is held beside ([`super::identical`], and the golden files of [`super`]).

use std::{cell::Cell, sync::Arc};

use tunegate::model::{CpuOptions, LoraAdapter, SiteDelta};

use super::{
    desk::{Desk, EXACT, FAST, Request},
    golden::{self, Answer, Scores},
    identical::{FORMATS, bits},
};

const GREEDY: usize = 4;

/// The prompt that every request has, and another beside it, by their places in the scores.
const PROMPT: usize = 1;
const BESIDE: usize = 0;

/// One format on one decoder.
struct Format {
    what: String,
    desk: Desk,
    /// One for each case of the scores: the base, then its adapters.
    contenders: Vec<Option<Arc<LoraAdapter>>>,
    fast: bool,
}

/// What a request has to be answered.
enum Right {
    /// As the oracle says, but for rounding.
    Near(Answer),
    Bits(Answer),
}

impl Right {
    fn is(&self, got: &Answer) -> bool {
        match self {
            Self::Near(expected) => expected.difference(got).is_none(),
            Self::Bits(expected) => bits(expected) == bits(got),
        }
    }
}

impl Format {
    fn open(file: &str, scores: &Scores, cpu: CpuOptions) -> Self {
        let desk = Desk::open_with(&golden::path(&scores.model), 256, 16, cpu);
        let contenders: Vec<_> =
            scores.cases.iter().map(|case| Some(desk.adapter(&golden::path(case.adapter.as_ref()?)))).collect();
        assert!(contenders.len() > 1 && contenders[0].is_none(), "{file}: the base, and an adapter");
        Self { what: format!("{file}, {cpu:?}"), desk, contenders, fast: !cpu.exact }
    }

    fn request<'s>(&self, scores: &'s Scores, contender: usize, prompt: usize) -> Request<'s> {
        Request::of(&scores.prompts[prompt].tokens, self.contenders[contender].clone())
    }

    fn answer(&mut self, request: Request) -> Answer {
        self.desk.answer(&[request], GREEDY).remove(0)
    }

    /// What a contender has to say to a prompt; and that it does.
    fn right(&mut self, scores: &Scores, contender: usize, prompt: usize) -> Right {
        let got = self.answer(self.request(scores, contender, prompt));
        if self.fast {
            return Right::Bits(got);
        }
        let mut expected = scores.cases[contender].answers[prompt].clone();
        expected.greedy.tokens.truncate(GREEDY);
        expected.greedy.logprobs.truncate(GREEDY);
        assert_eq!(expected.difference(&got), None, "{}, contender {contender} as it is", self.what);
        Right::Near(expected)
    }
}

/// Every format on both decoders and in both classes.
fn every_format(check: impl Fn(&Scores, &mut Format)) {
    for file in FORMATS {
        let scores = Scores::read(&format!("scores/{file}.json"));
        for cpu in [EXACT[0], EXACT[1], FAST] {
            check(&scores, &mut Format::open(file, &scores, cpu));
        }
    }
}

/// Runs each adapter spoiled by `alter`, which says whether it changed a site: that must not pass.
fn noticed(alter: impl Fn(&mut SiteDelta) -> bool + Copy, what: &str) {
    every_format(|scores, format| {
        let mut shown = 0;
        for contender in 1..format.contenders.len() {
            let right = format.right(scores, contender, PROMPT);
            let folder = golden::path(scores.cases[contender].adapter.as_deref().unwrap_or_default());
            let changed = Cell::new(false);
            let spoiled = format.desk.altered_adapter(&folder, |delta| changed.set(alter(delta) || changed.get()));
            if changed.get() {
                shown += 1;
                let wrong =
                    format.answer(Request { adapter: Some(spoiled), ..format.request(scores, contender, PROMPT) });
                assert!(!right.is(&wrong), "{}, contender {contender}: {what} went unnoticed", format.what);
            }
        }
        assert!(shown > 0, "{}: no adapter can show {what}", format.what);
    });
}

fn scale_of(delta: &mut SiteDelta) -> &mut f32 {
    match delta {
        SiteDelta::LowRank { scale, .. } => scale,
        SiteDelta::Bias(_) | SiteDelta::Full(_) | SiteDelta::EmbedLowRank { .. } | SiteDelta::TokenRows { .. } => {
            panic!("not a plain adapter: {delta:?}")
        }
    }
}

#[test]
fn a_build_that_zeroes_deltas_fails_in_every_format() {
    noticed(|delta| std::mem::replace(scale_of(delta), 0.0) != 0.0, "a zeroed delta");
}

#[test]
fn a_build_that_drops_the_scale_fails_in_every_format() {
    noticed(|delta| std::mem::replace(scale_of(delta), 1.0) != 1.0, "a dropped scale");
}

#[test]
fn a_build_that_shifts_rows_by_one_fails_in_every_format() {
    every_format(|scores, format| {
        for contender in 1..format.contenders.len() {
            // The adapter's request first, a base request after it: shifted rows leave the first and reach the second.
            let expected = [format.right(scores, contender, PROMPT), format.right(scores, 0, BESIDE)];
            let requests = [format.request(scores, contender, PROMPT), format.request(scores, 0, BESIDE)];
            let together = format.desk.answer(&requests, GREEDY);
            let shifted = format.desk.answer_shifted(&requests, GREEDY, 1);
            for (place, expected) in expected.iter().enumerate() {
                let what = format!("{}, contender {contender}, request {place}", format.what);
                assert!(expected.is(&together[place]), "{what} beside the other");
                assert!(!expected.is(&shifted[place]), "{what} is as it should be, and its rows are not");
            }
        }
    });
}

#[test]
fn a_build_that_serves_another_adapter_or_the_base_instead_fails_in_every_format() {
    every_format(|scores, format| {
        for contender in 0..format.contenders.len() {
            let right = format.right(scores, contender, PROMPT);
            for other in (0..format.contenders.len()).filter(|other| *other != contender) {
                let wrong = format.answer(format.request(scores, other, PROMPT));
                assert!(!right.is(&wrong), "{}: {other} passes for {contender}", format.what);
            }
        }
    });
}
