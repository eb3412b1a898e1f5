//! Recovery points: which one is meant, and which ones may go.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use mt_retention::{Consistency, EpochNumber, Origin, Point};

use mt_retention::policy::{Policy as StorePolicy, WhenFull};

use super::error::MachineError;
use crate::state::machines::Policy;

/// What an operator can mean by a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The newest that came from the source, at least this consistent.
    Latest(Consistency),
    /// The disks as they were when the store was made.
    BeforeFailback,
    /// This one.
    Epoch(u64),
    /// The newest that is not younger than this instant, by the source's clock.
    Time(Timestamp),
    /// The one of this name.
    Name(String),
}

impl Wanted {
    /// Reads what somebody typed: a word, a number, a time, or a name.
    pub fn parse(text: &str) -> Self {
        match text {
            "latest" | "latest-crash" => return Self::Latest(Consistency::Crash),
            "latest-file-system" => return Self::Latest(Consistency::FileSystem),
            "latest-application" => return Self::Latest(Consistency::Application),
            "before-failback" => return Self::BeforeFailback,
            _ => {}
        }
        if let Ok(number) = text.parse() {
            return Self::Epoch(number);
        }
        let time = text
            .parse()
            .or_else(|_| text.replacen(' ', "T", 1).parse::<Timestamp>());
        if let Ok(time) = time {
            return Self::Time(time);
        }
        // Without a zone it is what "points list" shows: UTC. A date alone is a name.
        let civil = text
            .contains(':')
            .then(|| text.parse::<DateTime>().ok())
            .flatten();
        civil
            .and_then(|civil| TimeZone::UTC.to_timestamp(civil).ok())
            .map_or_else(|| Self::Name(text.to_owned()), Self::Time)
    }

    /// Checks the name that somebody gives to a point: it can be told from a number, a time and the words with a meaning.
    ///
    /// # Errors
    /// What it would be taken for.
    pub fn check_name(text: &str) -> Result<(), String> {
        match Self::parse(text) {
            Self::Name(name) if name.is_empty() => Err("a name cannot be empty".to_owned()),
            Self::Name(_) => Ok(()),
            Self::Latest(_) | Self::BeforeFailback => Err(format!("\"{text}\" has a meaning of its own")),
            Self::Epoch(_) => Err(format!("\"{text}\" would be taken for the number of a point")),
            Self::Time(_) => Err(format!("\"{text}\" would be taken for a time")),
        }
    }

    /// Finds the point that is meant among those of a machine, oldest first.
    ///
    /// # Errors
    /// When there is none, with what there is instead.
    pub fn find<'a>(
        &self,
        machine: &str,
        points: impl DoubleEndedIterator<Item = &'a Point>,
        now: Timestamp,
    ) -> Result<EpochNumber, MachineError> {
        let points: Vec<&Point> = points.collect();
        let none = |what: String, hint: &str| MachineError::NoPoint {
            what,
            hint: hint.to_owned(),
        };
        let list = "\"mt-agent points list\" shows the points that can be reached";
        let newest = |good: &dyn Fn(&Point) -> bool| {
            points
                .iter()
                .rev()
                .find(|point| good(point))
                .map(|point| point.epoch)
        };
        let Some(first) = points.first() else {
            return Err(none(format!("machine {machine} has no recovery points"), list));
        };
        match self {
            Self::Latest(consistency) => newest(&|point| {
                point.consistency >= *consistency && !matches!(point.origin, Origin::Roll { .. })
            })
            .ok_or_else(|| none(format!("machine {machine} has no point of that kind"), list)),
            Self::BeforeFailback => newest(&|point| point.origin == Origin::Initial).ok_or_else(|| {
                none(
                    format!("machine {machine} has no point before-failback any more"),
                    "the oldest points went first when room was needed; see \"mt-agent points list\"",
                )
            }),
            Self::Epoch(number) => newest(&|point| point.epoch.0 == *number).ok_or_else(|| {
                // Numbers have gaps: those of points that are no longer kept, and of epochs that came to nothing.
                let below = points
                    .iter()
                    .rev()
                    .map(|point| point.epoch.0)
                    .find(|epoch| epoch < number);
                let above = points
                    .iter()
                    .map(|point| point.epoch.0)
                    .find(|epoch| epoch > number);
                let nearest = match (below, above) {
                    (Some(below), Some(above)) => format!("the nearest are {below} and {above}"),
                    (Some(newest), None) => format!("the newest is {newest}"),
                    (None, Some(oldest)) => format!("the oldest is {oldest}"),
                    (None, None) => "it has none".to_owned(),
                };
                none(
                    format!("machine {machine} has no point {number}; {nearest}"),
                    "points are numbered for each machine; \"mt-agent points list\" shows them",
                )
            }),
            Self::Time(time) if *time > now => Err(none(
                format!("{time} is in the future"),
                "\"latest\" is the newest there is",
            )),
            Self::Time(time) => {
                newest(&|point| point.source_time_ms <= time.as_millisecond()).ok_or_else(|| {
                    none(
                        format!(
                            "machine {machine} has no point as old as {time}; the oldest is {} of {}",
                            first.epoch,
                            time_of(first.source_time_ms)
                        ),
                        list,
                    )
                })
            }
            // Points without a name have none: an empty word, as of a shell variable that is not set, means nothing.
            Self::Name(name) => {
                let named: Vec<EpochNumber> = points
                    .iter()
                    .filter(|point| !name.is_empty() && point.name == *name)
                    .map(|point| point.epoch)
                    .collect();
                let shown = name.escape_debug();
                match named.as_slice() {
                    [one] => Ok(*one),
                    [] => Err(none(
                        format!(
                            "\"{shown}\" is no point of machine {machine}: neither a number, nor a time, nor a name"
                        ),
                        "give a number or a name that \"mt-agent points list\" shows, a time like 2026-03-02T10:14:07Z, \
                         \"latest\" or \"before-failback\"",
                    )),
                    several => Err(none(
                        format!(
                            "{} points of machine {machine} are named \"{shown}\": {}",
                            several.len(),
                            several
                                .iter()
                                .map(EpochNumber::to_string)
                                .collect::<Vec<_>>()
                                .join(", ")
                        ),
                        "give the number of the one that is meant",
                    )),
                }
            }
        }
    }
}

/// A time of a point.
pub fn time_of(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A policy in the words of the store. The newest point is never taken off the offer, however full the store is.
pub fn in_words_of_store(policy: &Policy) -> StorePolicy {
    let millis = |seconds: u64| i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
    StorePolicy {
        keep_all_ms: millis(policy.all_for),
        keep_hourly_ms: millis(policy.hourly_for),
        keep_daily_ms: millis(policy.daily_for),
        minimum_age_ms: millis(policy.minimum_age),
        when_full: WhenFull::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(epoch: u64, minute: i64, origin: Origin, consistency: Consistency, name: &str) -> Point {
        Point {
            epoch: EpochNumber(epoch),
            consistency,
            origin,
            source_time_ms: minute * 60_000,
            received_time_ms: minute * 60_000,
            name: name.into(),
            tags: vec![],
            pinned: false,
            changed_bytes: 0,
        }
    }

    #[test]
    fn a_name_is_not_taken_for_something_else() {
        for (text, what) in [
            ("", "empty"),
            ("2", "number"),
            ("latest", "meaning"),
            ("latest-application", "meaning"),
            ("before-failback", "meaning"),
            ("2026-03-02T10:14:07Z", "time"),
        ] {
            let why = Wanted::check_name(text).unwrap_err();
            assert!(why.contains(what), "{text:?}: {why}");
        }
        Wanted::check_name("before the update").unwrap();
        let nameless = [point(5, 40, Origin::Source, Consistency::Crash, "")];
        Wanted::parse("")
            .find("db01", nameless.iter(), time_of(60 * 60_000))
            .unwrap_err();
    }

    #[test]
    fn what_is_meant_by_a_word_a_number_a_time_or_a_name() {
        let roll = Origin::Roll { to: EpochNumber(2) };
        let points = [
            point(0, 10, Origin::Initial, Consistency::Crash, "before-failback"),
            point(2, 20, Origin::Source, Consistency::Application, "first update"),
            point(3, 30, Origin::Source, Consistency::FileSystem, "second update"),
            point(5, 40, Origin::Source, Consistency::Crash, "nightly"),
            point(6, 50, roll, Consistency::Application, "nightly"),
        ];
        let now = time_of(60 * 60_000);
        let find = |text: &str| Wanted::parse(text).find("db01", points.iter(), now);
        for (text, epoch) in [
            ("latest", 5),
            ("latest-crash", 5),
            ("latest-file-system", 3),
            ("latest-application", 2),
            ("before-failback", 0),
            ("0", 0),
            ("6", 6),
            ("first update", 2),
            ("second update", 3),
            ("1970-01-01T00:20:00Z", 2),
            ("1970-01-01 00:29:59Z", 2),
            ("1970-01-01T00:30:00", 3),
            ("1970-01-01 00:20", 2),
            ("1970-01-01T02:30:00+02:00", 3),
            ("1970-01-01T00:59:59Z", 6),
        ] {
            assert_eq!(find(text).unwrap().0, epoch, "{text}");
        }
        for (text, words) in [
            ("1", "nearest are 0 and 2"),
            ("4", "nearest are 3 and 5"),
            ("7", "the newest is 6"),
            ("nightly", "2 points of machine db01 are named \"nightly\": 5, 6"),
            ("\x1b[2J", "\\u{1b}[2J"),
            ("1970-01-01", "neither"),
            ("-1", "neither"),
            ("yesterday", "neither"),
            ("1970-01-01T01:00:01Z", "in the future"),
            ("1970-01-01T00:09:59Z", "the oldest is 0"),
        ] {
            let error = find(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = Wanted::parse("latest").find("db02", [].iter(), now).unwrap_err();
        assert!(error.to_string().contains("no recovery points"));
    }
}
