//! DescribeConfigs and the two ways to alter a topic's configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, alter_configs_response,
    incremental_alter_configs_response,
};

use super::cluster::Cluster;
use super::config::{Entry, TopicConfig};
use super::dispatch::{Call, text};
use super::fault::Fault;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// Where a value comes from, by Kafka's numbers.
const SET_ON_TOPIC: i8 = 1;
const SET_ON_BROKER: i8 = 4;
const DEFAULT: i8 = 5;

pub fn describe(
    cluster: &Arc<Cluster>,
    call: &Call,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let mut results = Vec::with_capacity(request.resources.len());
    // Each once: a short request must not have a long answer.
    let mut told = BTreeSet::new();
    for resource in request.resources {
        if !told.insert((resource.resource_type, resource.resource_name.clone())) {
            continue;
        }
        let asked = |name: &str| {
            let keys = resource.configuration_keys.as_ref();
            keys.is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
        };
        let found = match resource.resource_type {
            TOPIC => cluster
                .topic(&resource.resource_name)
                .map(|topic| topic.config.entries().filter(|entry| asked(entry.name)).collect::<Vec<_>>())
                .map(|entries| entries.iter().map(|e| described(e, request.include_synonyms)).collect())
                .ok_or(Fault::UnknownTopicOrPartition),
            BROKER => Ok(broker(call).into_iter().filter(|entry| asked(&entry.name)).collect()),
            _ => Err(Fault::InvalidRequest),
        };
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        results.push(match found {
            Ok(configs) => result.with_configs(configs),
            Err(fault) => result.with_error_code(fault as i16),
        });
    }
    DescribeConfigsResponse::default().with_results(results)
}

fn described(entry: &Entry, synonyms: bool) -> DescribeConfigsResourceResult {
    let synonym = |value: &str, source: i8| {
        DescribeConfigsSynonym::default()
            .with_name(text(entry.name))
            .with_value(Some(text(value)))
            .with_source(source)
    };
    let mut result = DescribeConfigsResourceResult::default()
        .with_name(text(entry.name))
        .with_value(Some(text(&entry.value)))
        .with_config_source(if entry.explicit { SET_ON_TOPIC } else { DEFAULT })
        .with_config_type(entry.kind);
    if synonyms {
        let mut all = vec![synonym(entry.default, DEFAULT)];
        if entry.explicit {
            all.insert(0, synonym(&entry.value, SET_ON_TOPIC));
        }
        result = result.with_synonyms(all);
    }
    result
}

/// The few settings of the broker that tools ask for.
fn broker(call: &Call) -> Vec<DescribeConfigsResourceResult> {
    let settings = [
        ("advertised.listeners", format!("PLAINTEXT://{}", call.ends.local)),
        ("auto.create.topics.enable", "false".to_owned()),
        ("broker.id", "1".to_owned()),
        ("default.replication.factor", "1".to_owned()),
        ("num.partitions", "1".to_owned()),
    ];
    let setting = |(name, value): (&str, String)| {
        DescribeConfigsResourceResult::default()
            .with_name(text(name))
            .with_value(Some(text(&value)))
            .with_read_only(true)
            .with_config_source(SET_ON_BROKER)
    };
    settings.into_iter().map(setting).collect()
}

/// Replaces a topic's whole configuration.
fn replace(
    cluster: &Cluster,
    kind: i8,
    topic: &str,
    config: BTreeMap<String, String>,
    validate_only: bool,
) -> Result<(), (Fault, String)> {
    if kind != TOPIC {
        return Err((Fault::InvalidRequest, "only topics have a configuration that can be altered".into()));
    }
    cluster.change_topic(topic, validate_only, |record| {
        record.config = config;
        Ok(())
    })
}

pub fn alter(cluster: &Arc<Cluster>, _: &Call, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let set = resource.configs.iter().filter_map(|config| {
            config.value.as_ref().map(|value| (config.name.to_string(), value.to_string()))
        });
        let name = &resource.resource_name;
        let outcome = replace(cluster, resource.resource_type, name, set.collect(), request.validate_only);
        let response = alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        responses.push(match outcome {
            Ok(()) => response,
            Err((fault, why)) => response.with_error_code(fault as i16).with_error_message(Some(text(&why))),
        });
    }
    AlterConfigsResponse::default().with_responses(responses)
}

/// One step of an incremental change: 0 sets, 1 unsets, 2 and 3 add to and take from a list.
fn step(
    config: &mut BTreeMap<String, String>,
    name: &str,
    operation: i8,
    value: &str,
) -> Result<(), (Fault, String)> {
    let listed = |config: &BTreeMap<String, String>| -> Result<Vec<String>, (Fault, String)> {
        let current = TopicConfig::new(config.clone()).map_err(|why| (Fault::InvalidConfig, why))?;
        let parts = current.value(name);
        Ok(parts.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect())
    };
    let given: Vec<&str> = value.split(',').collect();
    match operation {
        0 => {
            config.insert(name.to_owned(), value.to_owned());
        }
        1 => {
            config.remove(name);
        }
        2 => {
            let mut parts = listed(config)?;
            for part in given {
                if !parts.iter().any(|held| held == part) {
                    parts.push(part.to_owned());
                }
            }
            config.insert(name.to_owned(), parts.join(","));
        }
        3 => {
            let parts = listed(config)?;
            let kept: Vec<String> =
                parts.into_iter().filter(|part| !given.contains(&part.as_str())).collect();
            config.insert(name.to_owned(), kept.join(","));
        }
        other => return Err((Fault::InvalidRequest, format!("there is no config operation {other}"))),
    }
    Ok(())
}

pub fn alter_incrementally(
    cluster: &Arc<Cluster>,
    _: &Call,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let outcome = match resource.resource_type {
            TOPIC => cluster.change_topic(&resource.resource_name, request.validate_only, |record| {
                resource.configs.iter().try_for_each(|config| {
                    let value = config.value.as_deref().unwrap_or_default();
                    step(&mut record.config, &config.name, config.config_operation, value)
                })
            }),
            _ => Err((Fault::InvalidRequest, "only topics have a configuration that can be altered".into())),
        };
        let response = incremental_alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        responses.push(match outcome {
            Ok(()) => response,
            Err((fault, why)) => response.with_error_code(fault as i16).with_error_message(Some(text(&why))),
        });
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incremental_steps_set_unset_add_and_take() {
        let mut config = BTreeMap::new();
        step(&mut config, "retention.ms", 0, "5").unwrap();
        step(&mut config, "cleanup.policy", 2, "compact").unwrap();
        assert_eq!(config["cleanup.policy"], "delete,compact");
        step(&mut config, "cleanup.policy", 3, "delete").unwrap();
        assert_eq!(config["cleanup.policy"], "compact");
        step(&mut config, "retention.ms", 1, "").unwrap();
        assert_eq!(config.len(), 1);
        assert!(step(&mut config, "retention.ms", 9, "").is_err());
    }
}
