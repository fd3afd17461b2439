//! What is recorded, settled.

use std::time::Duration;

use super::Check;
use crate::config::{
    LimitsConfig,
    record::{Durability, DurabilityName, GROUP, RecordConfig},
};

/// No disk holds answers back for longer than this in memory.
const MOST_GROUP_MS: u64 = 60_000;

impl Check<'_> {
    pub(super) fn record(&mut self, limits: &LimitsConfig) -> RecordConfig {
        let said = &self.settings.said;
        let default = RecordConfig::default();
        // Less would refuse the largest requests for ever.
        let least = limits.max_choices as usize;
        RecordConfig {
            policy: said.record.unwrap_or(default.policy),
            data_dir: self.settings.data_dir(),
            max_pending: self.at_least(
                "record_max_pending",
                said.record_max_pending,
                least.max(default.max_pending),
                least,
            ),
            durability: self.durability(),
            on_fault: said.record_on_fault.unwrap_or(default.on_fault),
            stall: Duration::from_millis(self.at_least("record_stall_ms", said.record_stall_ms, 5000, 1)),
        }
    }

    fn durability(&mut self) -> Durability {
        let said = &self.settings.said;
        let name = said.record_durability.unwrap_or(DurabilityName::Strict);
        let window = match (name, said.record_group_ms) {
            (_, None) => GROUP,
            (DurabilityName::Group, Some(ms @ 1..=MOST_GROUP_MS)) => Duration::from_millis(ms),
            (DurabilityName::Group, Some(ms)) => {
                self.fault("record_group_ms", format!("it has to be between 1 and {MOST_GROUP_MS}; it is {ms}"));
                GROUP
            }
            (DurabilityName::Strict | DurabilityName::BestEffort, Some(_)) => {
                self.fault("record_group_ms", "it says something only with --record-durability group");
                GROUP
            }
        };
        match name {
            DurabilityName::Strict => Durability::Strict,
            DurabilityName::Group => Durability::Group(window),
            DurabilityName::BestEffort => Durability::BestEffort,
        }
    }
}
