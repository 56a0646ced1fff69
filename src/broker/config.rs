//! Topic configuration by Kafka's names: what is known, its defaults, and the values the broker acts on.
//!
//! Invariant: a name that Kafka does not know, or a value that does not parse, is refused when it is set; so
//! reading a configuration back never fails.

use std::collections::BTreeMap;

/// How a value is checked, and the type that describe-configs reports (Kafka's numbers).
#[derive(Clone, Copy)]
enum Kind {
    Boolean,
    Text,
    Int,
    Long,
    Double,
    List,
}

impl Kind {
    fn code(self) -> i8 {
        match self {
            Kind::Boolean => 1,
            Kind::Text => 2,
            Kind::Int => 3,
            Kind::Long => 5,
            Kind::Double => 6,
            Kind::List => 7,
        }
    }
}

/// Every topic configuration of Kafka's, with its default: Kafka's own, but where a comment says otherwise.
const KNOWN: &[(&str, &str, Kind)] = &[
    ("cleanup.policy", "delete", Kind::List),
    ("compression.gzip.level", "-1", Kind::Int),
    ("compression.lz4.level", "9", Kind::Int),
    ("compression.type", "producer", Kind::Text),
    ("compression.zstd.level", "3", Kind::Int),
    ("delete.retention.ms", "86400000", Kind::Long),
    ("file.delete.delay.ms", "60000", Kind::Long),
    ("flush.messages", "9223372036854775807", Kind::Long),
    ("flush.ms", "1000", Kind::Long),
    ("follower.replication.throttled.replicas", "", Kind::List),
    ("index.interval.bytes", "4096", Kind::Int),
    ("leader.replication.throttled.replicas", "", Kind::List),
    ("local.retention.bytes", "-2", Kind::Long),
    ("local.retention.ms", "-2", Kind::Long),
    ("max.compaction.lag.ms", "9223372036854775807", Kind::Long),
    ("max.message.bytes", "1048588", Kind::Int),
    ("message.downconversion.enable", "true", Kind::Boolean),
    ("message.format.version", "3.0-IV1", Kind::Text),
    ("message.timestamp.after.max.ms", "9223372036854775807", Kind::Long),
    ("message.timestamp.before.max.ms", "9223372036854775807", Kind::Long),
    ("message.timestamp.difference.max.ms", "9223372036854775807", Kind::Long),
    ("message.timestamp.type", "CreateTime", Kind::Text),
    ("min.cleanable.dirty.ratio", "0.5", Kind::Double),
    ("min.compaction.lag.ms", "0", Kind::Long),
    ("min.insync.replicas", "1", Kind::Int),
    ("preallocate", "false", Kind::Boolean),
    ("remote.storage.enable", "false", Kind::Boolean),
    ("retention.bytes", "-1", Kind::Long),
    // Kafka's is a week. Here offset zero is kept: history would be deleted by its old timestamps as soon as it comes.
    ("retention.ms", "-1", Kind::Long),
    ("segment.bytes", "134217728", Kind::Int),
    ("segment.index.bytes", "10485760", Kind::Int),
    ("segment.jitter.ms", "0", Kind::Long),
    ("segment.ms", "604800000", Kind::Long),
    ("unclean.leader.election.enable", "false", Kind::Boolean),
];

const NOT_NEGATIVE: [&str; 9] = [
    "delete.retention.ms",
    "max.compaction.lag.ms",
    "max.message.bytes",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.difference.max.ms",
    "min.compaction.lag.ms",
    "segment.bytes",
    "segment.ms",
];

/// One line of a configuration, as described to clients.
pub struct Entry {
    pub name: &'static str,
    pub value: String,
    /// Set on the topic, not a default.
    pub explicit: bool,
    pub kind: i8,
    pub default: &'static str,
}

/// A topic's configuration.
#[derive(Clone, Debug)]
pub struct TopicConfig {
    /// What was set, without defaults.
    pub explicit: BTreeMap<String, String>,
    /// `cleanup.policy`: what is old goes, what is superseded goes; both are possible.
    pub delete: bool,
    pub compact: bool,
    pub delete_retention_ms: i64,
    pub log_append_time: bool,
    pub max_compaction_lag_ms: i64,
    pub message_bytes_max: usize,
    pub min_cleanable_dirty_ratio: f64,
    pub min_compaction_lag_ms: i64,
    pub retention_bytes: i64,
    pub retention_ms: i64,
    pub segment_bytes: u64,
    pub segment_ms: i64,
    pub timestamp_after_max_ms: i64,
    pub timestamp_before_max_ms: i64,
}

impl TopicConfig {
    /// Checks names and values; the error says which is wrong and why.
    pub fn new(explicit: BTreeMap<String, String>) -> Result<TopicConfig, String> {
        for (name, value) in &explicit {
            let Some((_, _, kind)) = KNOWN.iter().find(|(known, ..)| known == name) else {
                return Err(format!("there is no topic configuration '{name}'"));
            };
            let fits = match kind {
                Kind::Boolean => matches!(value.as_str(), "true" | "false"),
                Kind::Int => value.parse::<i32>().is_ok(),
                Kind::Long => value.parse::<i64>().is_ok(),
                Kind::Double => value.parse::<f64>().is_ok(),
                Kind::Text | Kind::List => true,
            };
            if !fits {
                return Err(format!("'{value}' is not a value of {name}"));
            }
        }
        let text =
            |name: &str| explicit.get(name).map_or_else(|| default_of(name), String::as_str).to_owned();
        let number = |name: &str| text(name).parse::<i64>().unwrap_or(i64::MAX);
        let policy = text("cleanup.policy");
        if policy.split(',').any(|part| !matches!(part.trim(), "delete" | "compact")) {
            return Err(format!("cleanup.policy is 'delete', 'compact' or both, not '{policy}'"));
        }
        let timestamp_type = text("message.timestamp.type");
        if !matches!(timestamp_type.as_str(), "CreateTime" | "LogAppendTime") {
            return Err(format!(
                "message.timestamp.type is CreateTime or LogAppendTime, not '{timestamp_type}'"
            ));
        }
        for name in NOT_NEGATIVE {
            if number(name) < 0 {
                return Err(format!("{name} cannot be negative"));
            }
        }
        let ratio = text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5);
        if !(0.0..=1.0).contains(&ratio) {
            return Err(format!("min.cleanable.dirty.ratio is from 0 to 1, not {ratio}"));
        }
        // The older name for both sides.
        let difference_ms = number("message.timestamp.difference.max.ms");
        Ok(TopicConfig {
            delete: policy.contains("delete"),
            compact: policy.contains("compact"),
            delete_retention_ms: number("delete.retention.ms"),
            log_append_time: timestamp_type == "LogAppendTime",
            max_compaction_lag_ms: number("max.compaction.lag.ms"),
            min_cleanable_dirty_ratio: ratio,
            min_compaction_lag_ms: number("min.compaction.lag.ms"),
            message_bytes_max: usize::try_from(number("max.message.bytes")).unwrap_or(usize::MAX),
            retention_bytes: number("retention.bytes"),
            retention_ms: number("retention.ms"),
            segment_bytes: u64::try_from(number("segment.bytes")).unwrap_or(u64::MAX),
            segment_ms: number("segment.ms"),
            timestamp_after_max_ms: number("message.timestamp.after.max.ms").min(difference_ms),
            timestamp_before_max_ms: number("message.timestamp.before.max.ms").min(difference_ms),
            explicit,
        })
    }

    /// Of every known configuration.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        KNOWN.iter().map(|(name, ..)| *name)
    }

    /// Every known configuration, defaults included.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        KNOWN.iter().map(|(name, default, kind)| {
            let set = self.explicit.get(*name);
            let value = set.map_or(*default, String::as_str).to_owned();
            Entry { name, value, explicit: set.is_some(), kind: kind.code(), default }
        })
    }

    /// The value of a list such as `cleanup.policy`, for appending to it.
    pub fn value(&self, name: &str) -> String {
        self.explicit.get(name).map_or_else(|| default_of(name), String::as_str).to_owned()
    }
}

fn default_of(name: &str) -> &'static str {
    KNOWN.iter().find(|(known, ..)| *known == name).map_or("", |(_, default, _)| default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<TopicConfig, String> {
        TopicConfig::new(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn defaults_are_listed_and_what_is_set_wins() {
        let config = of(&[("retention.ms", "5")]).unwrap();
        let entry = |name: &str| config.entries().find(|entry| entry.name == name).unwrap();
        assert_eq!((entry("retention.ms").value.as_str(), entry("retention.ms").explicit), ("5", true));
        assert_eq!(entry("retention.ms").default, "-1");
        assert_eq!(
            (entry("max.message.bytes").value.as_str(), entry("segment.ms").explicit),
            ("1048588", false)
        );
    }

    #[test]
    fn unknown_names_and_wrong_values_are_refused_by_name() {
        assert!(of(&[("retention", "1")]).unwrap_err().contains("'retention'"));
        assert!(of(&[("retention.ms", "soon")]).unwrap_err().contains("'soon'"));
        assert!(of(&[("cleanup.policy", "none")]).is_err());
        assert!(of(&[("message.timestamp.type", "Never")]).is_err());
        assert!(of(&[("min.cleanable.dirty.ratio", "2")]).is_err());
        assert!(of(&[("min.compaction.lag.ms", "-1")]).is_err());
        assert!(of(&[("cleanup.policy", "compact,delete"), ("preallocate", "true")]).is_ok());
    }
}
