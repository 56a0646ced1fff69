//! The demo's records, which the binary carries with it so that the demo runs from anywhere.
//!
//! A record is produced when its flight leaves, while its event time is when it was scheduled: so a flight
//! that leaves hours late comes out of order, as real data does. In this order, all in one partition and with
//! `out_of_orderness: 3h`, 119 records are late for the hourly windows; with 24h none is.
//!
//! Invariant: order = actual departure (a cancelled flight's is its schedule), ties in the order of the file.

use std::io::Read;
use std::num::ParseIntError;

use chrono::{DateTime, Utc};
use flate2::read::GzDecoder;
use serde::Serialize;

const FLIGHTS: &[u8] = include_bytes!("../../../topologies/flights/january.csv.gz");
const AIRLINES: &str = include_str!("../../../topologies/flights/airlines.csv");

/// A departure as the topic `flights.departures` has it. Times are ISO, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Departure {
    pub flight: i64,
    pub carrier: String,
    pub origin: String,
    pub dest: String,
    /// Minutes, negative when early; `None`: cancelled.
    pub dep_delay: Option<i64>,
    pub sched_dep: String,
    pub dep: Option<String>,
}

/// An airline as the topic `flights.airlines` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Airline {
    pub carrier: String,
    pub name: String,
}

/// Why the data that the binary carries can't be read: a broken build.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("the demo's data cannot be unpacked: {0}")]
    Gzip(#[from] std::io::Error),
    #[error("line {line} of the demo's data: {detail}")]
    Line { line: usize, detail: String },
}

/// All departures, in the order in which they are produced.
pub fn departures() -> Result<Vec<Departure>, FeedError> {
    let mut text = String::new();
    GzDecoder::new(FLIGHTS).read_to_string(&mut text)?;
    let mut timed = text
        .lines()
        .enumerate()
        .skip(1)
        .map(|(index, line)| departure(line).map_err(|detail| FeedError::Line { line: index + 1, detail }))
        .collect::<Result<Vec<(DateTime<Utc>, Departure)>, FeedError>>()?;
    timed.sort_by_key(|(left, _)| *left);
    Ok(timed.into_iter().map(|(_, departure)| departure).collect())
}

/// All airlines, by code.
pub fn airlines() -> Vec<Airline> {
    AIRLINES
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(','))
        .map(|(carrier, name)| Airline { carrier: carrier.to_owned(), name: name.to_owned() })
        .collect()
}

/// One line of `january.csv.gz` and when that flight left.
fn departure(line: &str) -> Result<(DateTime<Utc>, Departure), String> {
    let fields: Vec<&str> = line.split(',').collect();
    let [sched_dep, dep, dep_delay, carrier, flight, origin, dest] = fields[..] else {
        return Err(format!("{} fields instead of 7", fields.len()));
    };
    let left = if dep.is_empty() { sched_dep } else { dep };
    let left: DateTime<Utc> = left.parse().map_err(|error| format!("{left}: {error}"))?;
    let number = |text: &str| text.parse().map_err(|error: ParseIntError| format!("{text}: {error}"));
    let departure = Departure {
        flight: number(flight)?,
        carrier: carrier.to_owned(),
        origin: origin.to_owned(),
        dest: dest.to_owned(),
        dep_delay: if dep_delay.is_empty() { None } else { Some(number(dep_delay)?) },
        sched_dep: sched_dep.to_owned(),
        dep: (!dep.is_empty()).then(|| dep.to_owned()),
    };
    Ok((left, departure))
}

#[cfg(test)]
mod tests {
    use chrono::{DurationRound, TimeDelta};

    use super::*;

    /// Records whose hourly window is closed by their own partition's watermark when they come.
    fn late(departures: &[Departure], out_of_orderness: TimeDelta) -> usize {
        let hour = TimeDelta::hours(1);
        let mut highest = DateTime::<Utc>::MIN_UTC;
        departures
            .iter()
            .filter(|departure| {
                let scheduled: DateTime<Utc> = departure.sched_dep.parse().expect("a time");
                highest = highest.max(scheduled);
                let window_end = scheduled.duration_trunc(hour).expect("an hour") + hour;
                departure.dep_delay.is_some() && window_end <= highest - out_of_orderness
            })
            .count()
    }

    #[test]
    fn january_has_the_flights_that_the_topology_counts_on() {
        let departures = departures().expect("the data");
        assert_eq!(departures.len(), 27_004);
        assert_eq!(departures.iter().filter(|departure| departure.dep_delay.is_none()).count(), 521);
        let first = serde_json::to_string(&departures[0]).expect("JSON");
        assert_eq!(
            first,
            r#"{"flight":1545,"carrier":"UA","origin":"EWR","dest":"IAH","dep_delay":2,"sched_dep":"2013-01-01T10:15:00Z","dep":"2013-01-01T10:17:00Z"}"#
        );
    }

    #[test]
    fn in_order_of_departure_119_are_late_at_three_hours_and_none_at_a_day() {
        let departures = departures().expect("the data");
        assert_eq!(late(&departures, TimeDelta::hours(3)), 119);
        assert_eq!(late(&departures, TimeDelta::hours(24)), 0);
    }

    #[test]
    fn every_carrier_has_a_name() {
        let airlines = airlines();
        assert_eq!(airlines.len(), 16);
        for departure in departures().expect("the data") {
            assert!(airlines.iter().any(|airline| airline.carrier == departure.carrier), "{departure:?}");
        }
    }
}
