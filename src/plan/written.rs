//! The views as the file has them, beside the plan that was made of them: for the page and others who show them.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::{DataType, Field};

use super::ViewPlan;
use super::sql::{self, Query, View};
use super::topology::Topology;
use crate::record::is_json;

/// `views` are those to keep, by name.
pub(super) fn views(
    topology: &Topology,
    queries: &BTreeMap<String, Query>,
    views: &BTreeMap<String, View>,
) -> Vec<ViewPlan> {
    let written = |(name, view): (&String, &View)| {
        let (_, text) = topology.views.0.iter().find(|(of, _)| of.value == *name)?;
        let reads: BTreeSet<&str> = queries.get(name)?.reads.iter().map(|(read, ..)| read.as_str()).collect();
        Some(ViewPlan {
            name: name.as_str().into(),
            reads: reads.into_iter().map(Into::into).collect(),
            sql: text.0.value.trim_end().into(),
            columns: view
                .schema
                .fields()
                .iter()
                .map(|field| (field.name().clone(), type_name(field)))
                .collect(),
        })
    };
    views.iter().filter_map(written).collect()
}

/// As a topology file spells it.
fn type_name(field: &Field) -> String {
    match field.data_type() {
        _ if is_json(field) => "json".to_owned(),
        DataType::List(item) => format!("{}[]", type_name(item)),
        DataType::Struct(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|field| format!("{} {}", field.name(), type_name(field))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        other => sql::type_name(other),
    }
}
