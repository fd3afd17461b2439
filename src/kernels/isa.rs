//! Which instructions the kernels use: asked of the machine once, then passed along.

/// Instructions that this machine is known to have. One machine's results are the same from run to run; two levels may
/// differ in last digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(super) Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Plain,
}

impl Isa {
    /// The reference, which runs everywhere.
    pub const PLAIN: Self = Self(Level::Plain);

    /// The fastest that the machine has.
    pub fn best() -> Self {
        Self::PLAIN
    }

    /// For logs.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Plain => "plain",
        }
    }
}
