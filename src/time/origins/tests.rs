//! Rules R3 and R4 one by one, and any sequence of steps against the rules written out plainly.

use proptest::prelude::*;

use super::*;

fn origin(partition: i32) -> Origin {
    Origin::new("t", partition)
}

fn set_of(partitions: i32) -> OriginSet {
    let mut origins = OriginSet::new();
    origins.declare([("t", partitions)]);
    origins
}

#[test]
fn nothing_passes_until_every_origin_was_heard_of() {
    let mut origins = set_of(3);
    assert_eq!(origins.advance(&origin(0), 1_000), WATERMARK_MIN);
    assert_eq!(origins.idle(&origin(1)), WATERMARK_MIN);
    // A row alone says nothing about time.
    assert_eq!(origins.row(&origin(2)), WATERMARK_MIN);
    assert_eq!(origins.advance(&origin(2), 700), 700);
}

#[test]
fn an_empty_set_is_at_the_beginning() {
    assert_eq!(OriginSet::new().watermark(), WATERMARK_MIN);
    assert_eq!(OriginSet::new().declare([("t", 0)]), WATERMARK_MIN);
}

#[test]
fn a_row_or_a_watermark_ends_idleness_and_the_watermark_stays() {
    for wake in [OriginSet::row, |origins: &mut OriginSet, of: &Origin| origins.advance(of, 400)] {
        let mut origins = set_of(2);
        origins.advance(&origin(0), 500);
        origins.advance(&origin(1), 300);
        assert_eq!(origins.idle(&origin(1)), 500);
        assert_eq!(origins.advance(&origin(0), 600), 600);
        assert_eq!(wake(&mut origins, &origin(1)), 600);
        // Awake, it holds the set back again.
        assert_eq!(origins.advance(&origin(0), 900), 600);
        assert_eq!(origins.advance(&origin(1), 800), 800);
    }
}

#[test]
fn all_idle_is_the_highest_own_watermark_and_never_beyond() {
    let mut origins = set_of(2);
    origins.advance(&origin(0), 500);
    origins.advance(&origin(1), 300);
    origins.idle(&origin(0));
    assert_eq!(origins.idle(&origin(1)), 500);
    let mut silent = set_of(2);
    silent.idle(&origin(0));
    assert_eq!(silent.idle(&origin(1)), WATERMARK_MIN);
}

#[test]
fn ended_is_plus_infinity_once_nothing_can_wake() {
    let mut origins = set_of(2);
    origins.advance(&origin(0), 500);
    assert_eq!(origins.end(&origin(1)), 500);
    // An idle origin beside ended ones may still wake.
    assert_eq!(origins.idle(&origin(0)), 500);
    assert_eq!(origins.end(&origin(0)), WATERMARK_MAX);
    assert_eq!(origins.advance(&origin(0), 7), WATERMARK_MAX);
    assert_eq!(origins.each().map(|(_, watermark)| watermark).collect::<Vec<_>>(), [WATERMARK_MAX; 2]);
}

#[test]
fn an_origin_added_later_enters_as_idle() {
    let mut origins = set_of(1);
    assert_eq!(origins.advance(&origin(0), 500), 500);
    assert_eq!(origins.declare([("t", 3)]), 500);
    assert_eq!(origins.len(), 3);
    assert_eq!(origins.advance(&origin(0), 600), 600);
    // Its first row makes it count.
    assert_eq!(origins.row(&origin(2)), 600);
    assert_eq!(origins.advance(&origin(0), 700), 600);
    assert_eq!(origins.advance(&origin(2), 650), 650);
    // A smaller set seen later takes nothing away.
    assert_eq!(origins.declare([("t", 1)]), 650);
    assert_eq!(origins.len(), 3);
}

#[test]
fn origins_of_several_topics_are_one_set() {
    let mut origins = OriginSet::new();
    origins.declare([("a", 1), ("b", 1)]);
    assert_eq!(origins.advance(&Origin::new("a", 0), 5), WATERMARK_MIN);
    assert_eq!(origins.advance(&Origin::new("b", 0), 3), 3);
}

#[test]
fn damaged_bytes_are_refused() {
    let mut origins = set_of(2);
    origins.advance(&origin(0), 500);
    let bytes = origins.to_bytes();
    for length in 0..bytes.len() {
        assert!(OriginSet::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    assert!(OriginSet::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    let mut other = bytes;
    other[0] = 9;
    assert!(OriginSet::from_bytes(&other).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Advance(i32, Watermark),
    Row(i32),
    Idle(i32),
    End(i32),
}

fn step(partitions: i32) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..partitions, -1000i64..1000).prop_map(|(of, to)| Step::Advance(of, to)),
        2 => (0..partitions).prop_map(Step::Row),
        2 => (0..partitions).prop_map(Step::Idle),
        1 => (0..partitions).prop_map(Step::End),
    ]
}

fn apply(origins: &mut OriginSet, step: &Step) -> Watermark {
    match *step {
        Step::Advance(of, to) => origins.advance(&origin(of), to),
        Step::Row(of) => origins.row(&origin(of)),
        Step::Idle(of) => origins.idle(&origin(of)),
        Step::End(of) => origins.end(&origin(of)),
    }
}

/// The rules as plainly as they can be said: per origin, what was heard last and the highest watermark.
fn by_the_rules(steps: &[Step]) -> Watermark {
    let mut heard = [("waiting", WATERMARK_MIN); 3];
    for step in steps {
        let (Step::Advance(of, _) | Step::Row(of) | Step::Idle(of) | Step::End(of)) = *step;
        let (status, own) = &mut heard[of as usize];
        match *step {
            _ if *status == "ended" => {}
            Step::Advance(_, to) => (*status, *own) = ("active", (*own).max(to)),
            Step::Row(_) if *status == "waiting" => {}
            Step::Row(_) => *status = "active",
            Step::Idle(_) => *status = "idle",
            Step::End(_) => *status = "ended",
        }
    }
    let of = |wanted: &str| {
        let own = |(status, own): &(&str, i64)| (*status == wanted).then_some(*own);
        heard.iter().filter_map(own).collect::<Vec<_>>()
    };
    if !of("waiting").is_empty() {
        WATERMARK_MIN
    } else if let Some(lowest) = of("active").into_iter().min() {
        lowest
    } else if of("idle").is_empty() {
        WATERMARK_MAX
    } else {
        heard.iter().map(|(_, own)| *own).max().unwrap()
    }
}

proptest! {
    #[test]
    fn it_keeps_the_rules_never_goes_back_and_survives_storage(steps in prop::collection::vec(step(3), 0..40)) {
        let mut origins = set_of(3);
        let mut highest = WATERMARK_MIN;
        for (index, step) in steps.iter().enumerate() {
            highest = highest.max(by_the_rules(&steps[..=index]));
            prop_assert_eq!(apply(&mut origins, step), highest);
            prop_assert_eq!(origins.watermark(), highest);
            origins = OriginSet::from_bytes(&origins.to_bytes()).unwrap();
        }
    }
}
