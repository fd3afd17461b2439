//! The words shared by every room: digests, names, messages, moments, sampling, endings, usage and scores.
//! Plain values; nothing here does I/O or knows another room.

mod clock;
mod digest;
mod message;
mod names;
mod sampling;
mod score;
mod sketch;
mod split;

pub use clock::Moment;
pub use digest::{AdapterVersion, Digest, DigestError, Hasher};
pub use message::{Message, Role, TemplateSource};
pub use names::{AdapterName, NameError};
pub use sampling::{Sampling, SamplingLayer};
pub use score::{Ending, FinishReason, RecordPolicy, TokenScore, Usage};
pub use sketch::{Sketch, TokenSketch};
pub use split::{Assignment, ConversationBy, Origin, Placement, Split, SplitBy};
