//! What is recorded, settled.

use std::time::Duration;

use super::Check;
use crate::config::{
    LimitsConfig, Secret,
    record::{Durability, DurabilityName, GROUP, RecordConfig, RetentionConfig, SplitConfig},
};

/// No disk holds answers back for longer than this in memory.
const MOST_GROUP_MS: u64 = 60_000;
/// The database of an empty record, and room for some answers.
const LEAST_BYTES: u64 = 8 << 20;
/// A shorter one could be guessed from the rows it has split.
const LEAST_SECRET: usize = 16;

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
            split: self.split(),
            redact_rules: self.settings.said.redact_rules.clone(),
            retention: self.retention(),
        }
    }

    fn retention(&mut self) -> RetentionConfig {
        let said = &self.settings.said;
        let retention = RetentionConfig {
            content_days: said.retain_content_days.map(|days| self.at_least("retain_content_days", Some(days), 1, 1)),
            facts_days: said.retain_facts_days.map(|days| self.at_least("retain_facts_days", Some(days), 1, 1)),
            max_bytes: said.retain_bytes.map(|bytes| self.bytes("retain_bytes", Some(bytes), 0, LEAST_BYTES)),
        };
        if let (Some(content), Some(facts)) = (retention.content_days, retention.facts_days)
            && facts < content
        {
            self.fault(
                "retain_facts_days",
                format!("facts stay at least as long as content, {content} days; it is {facts}"),
            );
        }
        retention
    }

    fn split(&mut self) -> SplitConfig {
        let said = &self.settings.said;
        let default = SplitConfig::default();
        let held_out = self.share("split_held_out", said.split_held_out, default.held_out);
        let audit = self.share("split_audit", said.split_audit, default.audit);
        if held_out + audit > 1.0 {
            let name = if said.split_audit.is_some() { "split_audit" } else { "split_held_out" };
            self.fault(
                name,
                format!("with {held_out} held out and {audit} in the audit there is more than everything"),
            );
        }
        let secret = said.split_secret.clone();
        if secret.as_ref().is_some_and(|secret| secret.len() < LEAST_SECRET) {
            self.fault("split_secret", format!("it has to have at least {LEAST_SECRET} characters"));
        }
        SplitConfig { held_out, audit, secret: secret.map(Secret) }
    }

    fn share(&mut self, name: &str, said: Option<f64>, default: f64) -> f64 {
        match said {
            Some(share) if (0.0..=1.0).contains(&share) => share,
            Some(share) => {
                self.fault(name, format!("it has to be between 0 and 1; it is {share}"));
                default
            }
            None => default,
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
