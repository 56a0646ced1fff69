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

#[cfg(test)]
mod unit {
    const FILE: &str = "\
name: t
sources:
  s: {topic: s, format: json, columns: {tags: 'varchar[]', place: 'struct<a bigint, b varchar>', body: json, n: 'decimal(9,2)'}}
views:
  alpha: |
    select tags, place, body, n  -- as it came
    from s
  beta: select n from alpha
  unused: select n from s
sinks:
  alpha: {topic: {name: t.alpha, format: json}}
  beta: {topic: {name: t.beta, format: json}}
";

    #[test]
    fn the_views_that_sinks_need_are_shown_as_the_file_has_them() {
        let plan = crate::plan::parse(FILE, "t.yaml").unwrap();
        let names: Vec<&str> = plan.views.iter().map(|view| view.name.as_ref()).collect();
        assert_eq!(names, ["alpha", "beta"]);
        let alpha = &plan.views[0];
        assert_eq!(&*alpha.sql, "select tags, place, body, n  -- as it came\nfrom s");
        assert_eq!((alpha.reads[0].as_ref(), plan.views[1].reads[0].as_ref()), ("s", "alpha"));
        let types: Vec<&str> = alpha.columns.iter().map(|(_, ty)| ty.as_str()).collect();
        assert_eq!(types, ["varchar[]", "struct<a bigint, b varchar>", "json", "decimal(9,2)"]);
    }
}
