//! Which instructions the kernels use: asked of the machine once, then passed along.

/// Instructions that this machine is known to have. One machine's results are the same from run to run; two levels may
/// differ in last digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(super) Level, pub(super) Tiles);

/// Whether there are AMX tiles of int8 as well, beside the highest level.
pub(super) type Tiles = bool;

/// Instructions that this machine lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this machine has no instructions called '{name}'; it has {}", .all.join(", "))]
pub struct MissingIsa {
    name: String,
    all: Vec<&'static str>,
}

/// Each level has the instructions of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Level {
    Plain,
    /// AVX2, FMA and F16C. Whoever makes this value has seen that the machine has all three.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI, seen likewise.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The reference, which runs everywhere.
    pub const PLAIN: Self = Self(Level::Plain, false);

    /// All that the machine has, the fastest last.
    pub fn all() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Self::PLAIN];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            levels.push(Self(Level::Avx2, false));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Self(Level::Avx512, false));
                if super::x86::amx::available() {
                    levels.push(Self(Level::Avx512, true));
                }
            }
        }
        levels
    }

    /// The fastest that the machine has.
    pub fn best() -> Self {
        Self::all().pop().unwrap_or(Self::PLAIN)
    }

    /// The level of this name; `None` for `auto`, which leaves the choice to the machine.
    ///
    /// # Errors
    /// [`MissingIsa`] if the machine does not have it, or nothing is called so.
    pub fn named(name: &str) -> Result<Option<Self>, MissingIsa> {
        let all = Self::all();
        match all.iter().find(|isa| isa.name() == name) {
            None if name == "auto" => Ok(None),
            None => Err(MissingIsa { name: name.to_owned(), all: all.iter().map(|isa| isa.name()).collect() }),
            Some(isa) => Ok(Some(*isa)),
        }
    }

    /// For logs and settings.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Plain => "plain",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if self.1 => "amx",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.ci/run` shows what this says: on another machine other kernels go untested.
    #[test]
    fn the_levels_that_the_tests_met_are_told() {
        let levels: Vec<&str> = Isa::all().iter().map(|isa| isa.name()).collect();
        println!("levels of instructions: {}", levels.join(", "));
        assert_eq!((levels[0], levels.last()), ("plain", Some(&Isa::best().name())));
    }

    #[test]
    fn every_level_of_the_machine_has_a_name_and_others_are_refused_with_what_there_is() {
        for isa in Isa::all() {
            assert_eq!(Isa::named(isa.name()), Ok(Some(isa)));
        }
        assert_eq!(Isa::named("auto"), Ok(None));
        let refusal = Isa::named("avx9").expect_err("no such level").to_string();
        assert!(refusal.contains("'avx9'") && refusal.contains(Isa::best().name()), "{refusal}");
    }
}
