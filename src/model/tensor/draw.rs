//! Drawing a token on the device, by the rules of [`crate::kernels::sample::Draw`], from each row's best candidates.
//!
//! Weights are `f32` there and `f64` on the host. A row where that could make a difference is left undecided, and so is one
//! whose draw needs more than its candidates; then its logits go to the host, which decides.

use candle_core::{DType, Device, Result, Tensor};

use super::{
    candidates::{Candidates, MOST},
    ops,
};
use crate::model::SampleAsk;

/// How near a sum of weights may come to what it is compared with, as a share of the row's mass. Several times what rounding
/// to `f32` makes of it.
const MARGIN: f64 = 2e-5;

/// How many candidates most draws need.
const FEW: usize = 64;

/// What one row draws by, as the device takes it. Flags are 0 or 1.
#[derive(Clone, Copy)]
pub struct Rules {
    temperature: f32,
    /// Most candidates that may be kept.
    allowed: f32,
    top_p: f32,
    min_p: f32,
    u: f32,
    /// Top-p or min-p cut: then `u` is a share of what they keep.
    filtered: f32,
    /// Top-k cuts: then the mass is that of the candidates it allows.
    limited: f32,
}

impl Rules {
    /// Takes the best score; also for rows that draw nothing.
    pub const GREEDY: Self =
        Self { temperature: 1.0, allowed: 1.0, top_p: 2.0, min_p: -1.0, u: 0.0, filtered: 0.0, limited: 1.0 };

    /// `None` if top-k allows more candidates than a row can have here.
    pub fn of(ask: &SampleAsk, vocab: usize) -> Option<Self> {
        if ask.temperature <= 0.0 {
            return Some(Self::GREEDY);
        }
        let top_k = ask.top_k as usize;
        let limited = (1..vocab).contains(&top_k);
        if limited && top_k > MOST {
            return None;
        }
        let flag = |yes: bool| f32::from(u8::from(yes));
        Some(Self {
            temperature: ask.temperature,
            allowed: if limited { top_k } else { vocab } as f32,
            // The best candidate is kept whatever the two say; 2 and -1 cut nothing, by any rounding.
            top_p: if ask.top_p < 1.0 { ask.top_p.max(f32::MIN_POSITIVE) } else { 2.0 },
            min_p: if ask.min_p > 0.0 { ask.min_p.min(1.0) } else { -1.0 },
            u: ask.u as f32,
            filtered: flag(ask.top_p < 1.0 || ask.min_p > 0.0),
            limited: flag(limited),
        })
    }

    /// How many candidates should do.
    pub fn candidates(&self) -> usize {
        if self.is_limited() && self.allowed < FEW as f32 { FEW } else { MOST }
    }

    fn is_limited(&self) -> bool {
        self.limited > 0.0
    }
}

/// The rules of all rows on the device, each `[rows, 1]`.
struct Parameters {
    temperature: Tensor,
    allowed: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    u: Tensor,
    /// `u8`
    filtered: Tensor,
    /// `u8`
    limited: Tensor,
}

impl Parameters {
    fn new(rules: &[Rules], device: &Device) -> Result<Self> {
        let fields: [fn(&Rules) -> f32; 7] =
            [|r| r.temperature, |r| r.allowed, |r| r.top_p, |r| r.min_p, |r| r.u, |r| r.filtered, |r| r.limited];
        let values: Vec<f32> = fields.iter().flat_map(|field| rules.iter().map(field)).collect();
        let all = ops::upload(&values, (fields.len(), rules.len(), 1), device)?;
        let flags = ops::less(&ops::filled(0.0, (1, 1, 1), device)?, &all)?;
        Ok(Self {
            temperature: all.get(0)?,
            allowed: all.get(1)?,
            top_p: all.get(2)?,
            min_p: all.get(3)?,
            u: all.get(4)?,
            filtered: flags.get(5)?,
            limited: flags.get(6)?,
        })
    }
}

/// What came of a draw, each `[rows, 1]`.
pub struct Drawn {
    /// `u32`; any id where one of the two below says that there is none.
    pub tokens: Tensor,
    /// `u8`: whether the row's logits are needed.
    pub undecided: Tensor,
    /// `u8`: whether anything may be drawn: the best logit is neither -∞ nor +∞.
    pub sound: Tensor,
}

/// Draws for each row of `logits` (`[rows, vocab]`, adjusted), of which `candidates` are the best.
pub fn draw(logits: &Tensor, candidates: &Candidates, rules: &[Rules]) -> Result<Drawn> {
    let device = logits.device();
    let Candidates { values, ids, floor } = candidates;
    let count = candidates.count();
    let parameters = Parameters::new(rules, device)?;
    let nothing = ops::filled(0.0, (1, 1), device)?;
    let best = ops::contiguous(&values.narrow(1, 0, 1)?)?;
    let weigh = |x: &Tensor| ops::exp(&ops::div(&ops::sub(x, &best)?, &parameters.temperature)?);
    let weights = weigh(values)?;

    let places: Vec<f32> = (0..count).map(|place| place as f32).collect();
    let places = ops::upload(&places, (1, count), device)?;
    let allowed = ops::less(&places, &parameters.allowed)?;
    let earlier = ops::cast(&ops::less(&places.reshape((count, 1))?, &places)?, DType::F32)?;
    // The weights of all better candidates; then with its own.
    let before = ops::matmul(&weights, &earlier)?;
    let through = ops::add(&before, &weights)?;
    let mut mass = ops::sum(&ops::choose(&allowed, &weights, &nothing)?)?;
    if !rules.iter().all(Rules::is_limited) {
        mass = ops::choose(&parameters.limited, &mass, &total(&weigh(logits)?)?)?;
    }

    let share = ops::mul(&parameters.top_p, &mass)?;
    let kept = ops::mul(&allowed, &ops::less(&before, &share)?)?;
    let kept = ops::mul(&kept, &ops::greater_equal(&weights, &parameters.min_p)?)?;
    let kept_mass = ops::sum(&ops::choose(&kept, &weights, &nothing)?)?;
    let target = ops::mul(&parameters.u, &ops::choose(&parameters.filtered, &kept_mass, &mass)?)?;
    let passed = number(&ops::mul(&kept, &ops::less_equal(&through, &target)?)?)?;
    let kept_number = number(&kept)?;
    // A place beyond the last is doubtful below.
    let inside = ops::less(&passed, &kept_number)?;
    let place = ops::cast(&ops::choose(&inside, &passed, &nothing)?, DType::U32)?;

    let margin = ops::affine(&mass, MARGIN, 0.0)?;
    let min_margin = ops::affine(&parameters.min_p, MARGIN, 0.0)?;
    let later = ops::less(&nothing, &places)?;
    let close = [
        number(&ops::mul(&near(&through, &target, &margin)?, &kept)?)?,
        number(&ops::mul(&near(&before, &share, &margin)?, &later)?)?,
        number(&ops::mul(&near(&weights, &parameters.min_p, &min_margin)?, &later)?)?,
    ];
    let mut doubts = ops::add(&ops::add(&close[0], &close[1])?, &close[2])?;
    let beyond = ops::less_equal(&kept_number, &passed)?;
    doubts = ops::add(&doubts, &ops::cast(&beyond, DType::F32)?)?;
    if let Some(floor) = floor {
        let among_ties = ops::less_equal(&ops::gather(values, &place)?, floor)?;
        // Top-p or min-p may keep more than these candidates, unless top-k ends before.
        let all_kept = ops::less_equal(&ops::filled(count as f32, (1, 1), device)?, &kept_number)?;
        let unended = ops::less(&parameters.limited, &ops::mul(&parameters.filtered, &all_kept)?)?;
        doubts = ops::add(&doubts, &ops::cast(&among_ties, DType::F32)?)?;
        doubts = ops::add(&doubts, &ops::cast(&unended, DType::F32)?)?;
    }
    let finite_below = ops::less_equal(&best, &ops::filled(f32::MAX, (1, 1), device)?)?;
    let finite_above = ops::greater_equal(&best, &ops::filled(f32::MIN, (1, 1), device)?)?;
    Ok(Drawn {
        tokens: ops::gather(ids, &place)?,
        undecided: ops::less(&nothing, &doubts)?,
        sound: ops::mul(&finite_below, &finite_above)?,
    })
}

/// Sums of `[rows, n]`: `[rows, 1]`; in two rounds where `n` allows it, which keeps `f32` accurate.
pub fn total(x: &Tensor) -> Result<Tensor> {
    let (rows, length) = x.dims2()?;
    match (33..=512).rev().find(|part| length % part == 0) {
        Some(part) => ops::sum(&ops::sum(&x.reshape((rows, length / part, part))?)?.reshape((rows, length / part))?),
        None => ops::sum(x),
    }
}

/// How many of `[rows, n]` flags are set: `[rows, 1]` in `f32`.
fn number(flags: &Tensor) -> Result<Tensor> {
    ops::sum(&ops::cast(flags, DType::F32)?)
}

/// Whether `x` is less than `margin` away from `bound`; never, if the margin is negative.
fn near(x: &Tensor, bound: &Tensor, margin: &Tensor) -> Result<Tensor> {
    let above = ops::less(&ops::sub(bound, margin)?, x)?;
    ops::mul(&above, &ops::less(x, &ops::add(bound, margin)?)?)
}
