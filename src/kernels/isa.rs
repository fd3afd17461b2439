//! Which instructions the kernels use: asked of the machine once, then passed along.

/// Instructions that this machine is known to have. One machine's results are the same from run to run; two levels may
/// differ in last digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(super) Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Plain,
    /// AVX2, FMA and F16C. Whoever makes this value has seen that the machine has all three.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Isa {
    /// The reference, which runs everywhere.
    pub const PLAIN: Self = Self(Level::Plain);

    /// The fastest that the machine has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Self(Level::Avx2);
        }
        Self::PLAIN
    }

    /// For logs.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Plain => "plain",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
        }
    }
}
